"""A real run with faults, watched by a real Prometheus, and whether what is deployed finds in it what it asks for."""

import pathlib
import re
import subprocess
import tempfile
from typing import Iterator

import promql_parser as promql

import deployed
from processes import Failure, Processes, get, wait_for
from prometheus import Prometheus
from promql import metric, now, operands, selectors, without_variables

HERE = pathlib.Path(__file__).resolve().parent
# Metrics that are in no panel and no rule, and why.
UNUSED: dict[str, str] = {}
# What is Prometheus' own.
OWN = {"up", "ALERTS"}


class Coordinator:
    """A coordinator on ports of the system's choosing."""

    def __init__(self, processes: Processes, programs: pathlib.Path, name: str) -> None:
        self.processes, self.programs, self.name = processes, programs, name
        folder = processes.folder
        text = (HERE / f"{name}.yaml").read_text().replace("FOLDER", str(folder))
        (folder / f"{name}.yaml").write_text(text)
        command = [programs / "coordinator", "serve", "--config", folder / f"{name}.yaml"]
        self.process = processes.start(name, [*command, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        line = self.process.stdout.readline()
        found = re.search(r"grpc=(\S+) http=(\S+)", line)
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


class Watched:
    """The run, what Prometheus saw of it, and which metrics it ever exposed (by name; whether it is a histogram)."""

    def __init__(self, programs: pathlib.Path, folder: pathlib.Path) -> None:
        self.processes = Processes(folder)
        self.programs = programs
        self.exposed: dict[str, str] = {}

    def look(self) -> None:
        self.exposed |= dict(re.findall(r"^# TYPE (\S+) (\S+)$", self.run.metrics(), re.MULTILINE))

    def story(self) -> Iterator[str]:
        """What happens, and what of it does not go as it should."""
        folder = self.processes.folder
        world = [self.programs / "worker", "synthesize", "--out", folder / "world", "--images", 60, "--seed", 3]
        subprocess.run([str(word) for word in world], check=True, capture_output=True)
        self.run = run = Coordinator(self.processes, self.programs, "run")
        short = Coordinator(self.processes, self.programs, "short")
        self.prometheus = prometheus = Prometheus(self.processes, [run.http, short.http])
        self.target = run.http
        workers = [run.worker(rank) for rank in (0, 1)]
        of_run, of_short = f'instance="{run.http}"', f'instance="{short.http}"'

        say("a run through all its stages")
        wait_for("rewards", lambda: prometheus.present(f"stage:dico_reward_chosen:median{{{of_run}}}"))
        wait_for("scores", lambda: prometheus.present(f'dico_evaluation_score{{{of_run}, metric="ref_pac_s"}}'))
        self.look()

        say("a call that is refused")
        resume = [self.programs / "coordinator", "resume", "--coordinator", run.url]
        if subprocess.run(resume, capture_output=True, check=False).returncode == 0:
            yield "a run that is not paused could be resumed"
        refusals = f'dico_refusals_total{{{of_run}, reason="not_in_state"}}'
        wait_for("the refusal", lambda: prometheus.present(refusals))

        say("a worker that is killed")
        before = {name: prometheus.present(f"{name}{{{of_run}}}") for name in RECOVERY}
        workers[1].kill()
        lost = lambda: prometheus.alert("DicoWorkerLost", instance=run.http, rank="1")
        wait_for("DicoWorkerLost to be pending", lambda: lost() == "pending")
        wait_for("DicoWorkerLost to fire", lambda: lost() == "firing")
        for name, value in before.items():
            wait_for(f"{name} to rise", lambda: (prometheus.present(f"{name}{{{of_run}}}") or 0) > (value or 0))
        run.worker(1)
        wait_for("DicoWorkerLost to be over", lambda: lost() is None)
        wait_for("a guard's alert", lambda: prometheus.alert("DicoGuardFired", instance=run.http))

        say("a run that waits for workers, gets one, and is over")
        missing = lambda: prometheus.alert("DicoWorkersMissing", instance=short.http)
        wait_for("DicoWorkersMissing to fire", lambda: missing() == "firing")
        short.worker(0)
        wait_for("the run to be over", lambda: short.process.poll() is not None)
        self.look()

        say("a coordinator that is gone")
        self.run.process.kill()
        down = lambda instance: prometheus.alert("DicoCoordinatorDown", instance=instance)
        wait_for("DicoCoordinatorDown to fire", lambda: down(run.http) == "firing")
        wait_for("the end of what is known of the short run", lambda: missing() is None)
        if state := down(short.http):
            yield f"DicoCoordinatorDown is {state} for a run that is over"

    def unanswered(self) -> Iterator[str]:
        """Queries without an answer."""
        for where, expr, legend in [*deployed.panels(), *deployed.recorded()]:
            expr = without_variables(expr, self.target, 600)
            series = self.prometheus.course(expr)
            if not series:
                yield f"{where}: no data: {expr}"
            for label in re.findall(r"\{\{(\w+)\}\}", legend):
                if any(label not in one["metric"] for one in series):
                    yield f"{where}: its legend shows {label}, which is no label of {expr}"
            yield from self.nothing_selected(where, expr)
        for where, expr, _ in deployed.alerts():
            for operand in operands(promql.parse(expr)):
                if not self.prometheus.course(operand):
                    yield f"{where}: no data: {operand}"
            yield from self.nothing_selected(where, expr)
        for name, dashboard in deployed.dashboards().items():
            for variable in dashboard["templating"]["list"]:
                if variable["type"] == "query":
                    yield from self.no_choice(f"{name}, variable {variable['name']}", variable["query"]["query"])

    def nothing_selected(self, where: str, expr: str) -> Iterator[str]:
        """Selectors that nothing matches, on either side of anything."""
        for selector in selectors(promql.parse(expr)):
            if not self.prometheus.course(now(str(selector))):
                yield f"{where}: nothing is selected by {selector}"

    def no_choice(self, where: str, query: str) -> Iterator[str]:
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
        selector = selector.replace("$run", "watched")
        series = self.prometheus.course(selector)
        if not series or any(label not in one["metric"] for one in series):
            yield f"{where}: no values: {query}"

    def names(self) -> Iterator[str]:
        """Metrics that are asked for but not exposed, and the other way round."""
        histograms = {name for name, kind in self.exposed.items() if kind == "histogram"}
        recorded = {rule["record"] for rule in deployed.rules("rules.yaml")}
        used = set()
        for where, expr, _ in [*deployed.panels(), *deployed.recorded(), *deployed.alerts()]:
            for selector in selectors(promql.parse(without_variables(expr, self.target, 600))):
                name = metric(selector, histograms)
                used.add(name)
                if name not in self.exposed.keys() | recorded | OWN:
                    yield f"{where}: nobody exposes {name}"
        for name in sorted(self.exposed.keys() - used - UNUSED.keys()):
            yield f"{name} is exposed but in no panel and no rule: add it, or say why not in UNUSED"
        for name in sorted(UNUSED.keys() & used | UNUSED.keys() - self.exposed.keys()):
            yield f"UNUSED names {name}, which is used or not exposed"
        for name in sorted(recorded - used):
            yield f"rule {name} is in no panel and no rule"


# What a recovery moves.
RECOVERY = ["dico_workers_lost_total", "dico_recoveries_total", "dico_recovery_seconds_count", "dico_generation"]


def say(what: str) -> None:
    print(f"== {what}", flush=True)


def problems(programs: pathlib.Path) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        watched = Watched(programs, pathlib.Path(folder))
        try:
            found = list(watched.story())
            say("every query of every panel and rule")
            return [*found, *watched.unanswered(), *watched.names()]
        finally:
            watched.processes.stop()
