"""Runs training with faults, which a real Prometheus scrapes."""

import pathlib
import re
import subprocess
from typing import Iterator

from processes import CheckError, Processes, get, wait_for
from prometheus import Prometheus

HERE = pathlib.Path(__file__).resolve().parent
# Metrics that grow with a recovery.
RECOVERY = ["dico_workers_lost_total", "dico_recoveries_total", "dico_recovery_seconds_count", "dico_generation"]


class Coordinator:
    """A coordinator on free ports."""

    def __init__(self, processes: Processes, programs: pathlib.Path, name: str) -> None:
        self.processes, self.programs, self.name = processes, programs, name
        run_file = processes.folder / f"{name}.yaml"
        run_file.write_text((HERE / f"{name}.yaml").read_text().replace("FOLDER", str(processes.folder)))
        options = ["--config", run_file, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        self.process = processes.start(name, [programs / "coordinator", "serve", *options])
        addresses = re.search(r"grpc=(\S+) http=(\S+)", self.process.stdout.readline())
        if addresses is None:
            raise CheckError(f"the coordinator did not start: {processes.log(name)}")
        self.url, self.http = f"http://{addresses[1]}", addresses[2]

    def worker(self, worker_id: int) -> subprocess.Popen:
        command = [self.programs / "worker", "join", "--coordinator", self.url, "--rank", worker_id, "--threads", 1]
        return self.processes.start(f"{self.name}-{worker_id}", command)

    def metrics(self) -> str:
        text = get(f"http://{self.http}/metrics")
        if text is None:
            raise CheckError(f"the coordinator does not respond: {self.processes.log(self.name)}")
        return text


class WatchedRun:
    """A run with faults, and a short run beside it; Prometheus scrapes both."""

    def __init__(self, processes: Processes, programs: pathlib.Path) -> None:
        synthesize = [programs / "worker", "synthesize", "--out", processes.folder / "world", "--images", "60", "--seed", "3"]
        subprocess.run(synthesize, check=True, capture_output=True)
        self.programs = programs
        self.run, self.short = (Coordinator(processes, programs, name) for name in ("run", "short"))
        self.prometheus = Prometheus(processes, [self.run.http, self.short.http])
        # Metrics of the run at its end.
        self.exposition = ""

    def value(self, name: str, /, **labels: str) -> float | None:
        """Returns the present value of a metric of the run."""
        matchers = [f'{label}="{value}"' for label, value in {"instance": self.run.http, **labels}.items()]
        return self.prometheus.value(f"{name}{{{', '.join(matchers)}}}")

    def wait_for_alert(self, name: str, state: str | None, **labels: str) -> None:
        alert_labels = {"instance": self.run.http, **labels}
        wait_for(f"{name} to be {state or 'over'}", lambda: self.prometheus.alert(name, **alert_labels) == state)

    def execute(self) -> Iterator[str]:
        """Executes the faults, and yields problems."""
        print_heading("a run with all kinds of stages")
        rule = {"metric": "caption_length", "action": "warn"}
        wait_for("counters at zero", lambda: self.value("dico_guard_events_total", **rule) == 0)
        workers = [self.run.worker(worker_id) for worker_id in (0, 1)]
        wait_for("rewards", lambda: self.value("stage:dico_reward_chosen:median") is not None)
        wait_for("scores", lambda: self.value("dico_evaluation_score", metric="ref_pac_s") is not None)
        self.wait_for_alert("DicoGuardFired", "firing", **rule)

        print_heading("a refused command")
        resume = [self.programs / "coordinator", "resume", "--coordinator", self.run.url]
        if subprocess.run(resume, capture_output=True, check=False).returncode == 0:
            yield "`coordinator resume` succeeded although the run is not paused"
        wait_for("the refusal", lambda: self.value("dico_refusals_total", reason="not_in_state"))

        print_heading("a killed worker")
        before = {name: self.value(name) or 0 for name in RECOVERY}
        workers[1].kill()
        for state in ("pending", "firing"):
            self.wait_for_alert("DicoWorkerLost", state, rank="1")
        for name, value in before.items():
            wait_for(f"{name} to rise", lambda: (self.value(name) or 0) > value)
        self.run.worker(1)
        self.wait_for_alert("DicoWorkerLost", None, rank="1")

        print_heading("a run that waits for a worker, and finishes")
        self.wait_for_alert("DicoWorkersMissing", "firing", instance=self.short.http)
        self.short.worker(0)
        wait_for("the end of the run", lambda: self.short.process.poll() is not None)

        print_heading("a killed coordinator")
        self.exposition = self.run.metrics()
        self.run.process.kill()
        self.wait_for_alert("DicoCoordinatorDown", "firing")
        self.wait_for_alert("DicoWorkersMissing", None, instance=self.short.http)
        # The coordinator of the short run ended earlier, so its alert would be active by now.
        if state := self.prometheus.alert("DicoCoordinatorDown", instance=self.short.http):
            yield f"DicoCoordinatorDown is {state} for a finished run"


def print_heading(text: str) -> None:
    print(f"== {text}", flush=True)
