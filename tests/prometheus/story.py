"""A real run with faults, which a real Prometheus watches."""

import pathlib
import re
import subprocess
from typing import Iterator

from processes import Failure, Processes, get, wait_for
from prometheus import Prometheus

HERE = pathlib.Path(__file__).resolve().parent
# What a recovery moves.
RECOVERY = ["dico_workers_lost_total", "dico_recoveries_total", "dico_recovery_seconds_count", "dico_generation"]


class Coordinator:
    """A coordinator on ports of the system's choosing."""

    def __init__(self, processes: Processes, programs: pathlib.Path, name: str) -> None:
        self.processes, self.programs, self.name = processes, programs, name
        run_file = processes.folder / f"{name}.yaml"
        run_file.write_text((HERE / f"{name}.yaml").read_text().replace("FOLDER", str(processes.folder)))
        options = ["--config", run_file, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        self.process = processes.start(name, [programs / "coordinator", "serve", *options])
        found = re.search(r"grpc=(\S+) http=(\S+)", self.process.stdout.readline())
        if found is None:
            raise Failure(f"the coordinator did not start: {processes.log(name)}")
        self.url, self.http = f"http://{found[1]}", found[2]

    def worker(self, rank: int) -> subprocess.Popen:
        command = [self.programs / "worker", "join", "--coordinator", self.url, "--rank", rank, "--threads", 1]
        return self.processes.start(f"{self.name}-{rank}", command)

    def metrics(self) -> str:
        text = get(f"http://{self.http}/metrics")
        if text is None:
            raise Failure(f"the coordinator does not answer: {self.processes.log(self.name)}")
        return text


class Story:
    """What happens to a run that is watched, and to a short one beside it."""

    def __init__(self, processes: Processes, programs: pathlib.Path) -> None:
        world = [programs / "worker", "synthesize", "--out", processes.folder / "world", "--images", "60", "--seed", "3"]
        subprocess.run(world, check=True, capture_output=True)
        self.programs = programs
        self.run, self.short = (Coordinator(processes, programs, name) for name in ("run", "short"))
        self.prometheus = Prometheus(processes, [self.run.http, self.short.http])
        # What the run has ever exposed.
        self.exposition = ""

    def present(self, name: str, /, **labels: str) -> float | None:
        """The value of a metric of the run."""
        matchers = [f'{label}="{value}"' for label, value in {"instance": self.run.http, **labels}.items()]
        return self.prometheus.present(f"{name}{{{', '.join(matchers)}}}")

    def wait_for_alert(self, name: str, state: str | None, **labels: str) -> None:
        wanted = {"instance": self.run.http, **labels}
        wait_for(f"{name} to be {state or 'over'}", lambda: self.prometheus.alert(name, **wanted) == state)

    def tell(self) -> Iterator[str]:
        """All of it; what does not go as it should."""
        say("a run through all its stages")
        rule = {"metric": "caption_length", "action": "warn"}
        wait_for("counters at zero", lambda: self.present("dico_guard_events_total", **rule) == 0)
        workers = [self.run.worker(rank) for rank in (0, 1)]
        wait_for("rewards", lambda: self.present("stage:dico_reward_chosen:median") is not None)
        wait_for("scores", lambda: self.present("dico_evaluation_score", metric="ref_pac_s") is not None)
        self.wait_for_alert("DicoGuardFired", "firing", **rule)

        say("a call that is refused")
        resume = [self.programs / "coordinator", "resume", "--coordinator", self.run.url]
        if subprocess.run(resume, capture_output=True, check=False).returncode == 0:
            yield "a run that is not paused could be resumed"
        wait_for("the refusal", lambda: self.present("dico_refusals_total", reason="not_in_state"))

        say("a worker that is killed")
        before = {name: self.present(name) or 0 for name in RECOVERY}
        workers[1].kill()
        for state in ("pending", "firing"):
            self.wait_for_alert("DicoWorkerLost", state, rank="1")
        for name, value in before.items():
            wait_for(f"{name} to rise", lambda: (self.present(name) or 0) > value)
        self.run.worker(1)
        self.wait_for_alert("DicoWorkerLost", None, rank="1")

        say("a run that waits for workers, gets one, and is over")
        self.wait_for_alert("DicoWorkersMissing", "firing", instance=self.short.http)
        self.short.worker(0)
        wait_for("the run to be over", lambda: self.short.process.poll() is not None)

        say("a coordinator that is killed")
        self.exposition = self.run.metrics()
        self.run.process.kill()
        self.wait_for_alert("DicoCoordinatorDown", "firing")
        self.wait_for_alert("DicoWorkersMissing", None, instance=self.short.http)
        # The short run has been away for longer.
        if state := self.prometheus.alert("DicoCoordinatorDown", instance=self.short.http):
            yield f"DicoCoordinatorDown is {state} for a run that is over"


def say(what: str) -> None:
    print(f"== {what}", flush=True)
