"""What a coordinator costs a step: a real run of one worker on the built-in world."""

import contextlib
import pathlib
import re
import sqlite3
import subprocess
import tempfile

import summary
from processes import LAST_LINES, Failed, end, environment, output

STEPS = 400
# Milliseconds a step between two steps.
BOUND = 2
# Seconds; longer than the run takes on a slow machine.
PATIENCE = 1200
# Short steps are the worst case: a small captioner, few captions.
RUN_FILE = """\
name: overhead
seed: 7
output: {folder}/run
workers: {{ min: 1, max: 1 }}
data:
  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}
  scenes: {folder}/world/scenes.json
vocabulary: corpus
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny, dropout: 0.0 }}
stages:
  - {{ name: xe, objective: cross_entropy, steps: {steps}, batch: 8, optimizer: {{ learning_rate: 1.0e-3 }} }}
"""


def measured(coordinator: str, worker: str) -> tuple[dict, str]:
    """Milliseconds a step that pass between the end of a step and the begin of the next one, and a line about it."""
    with tempfile.TemporaryDirectory(prefix="dico-bench-") as name:
        folder = pathlib.Path(name)
        output([worker, "synthesize", "--out", f"{folder}/world", "--images", "100", "--seed", "7"], 1)
        (folder / "run.yaml").write_text(RUN_FILE.format(folder=folder, steps=STEPS))
        run(coordinator, worker, folder)
        journal = f"file:{folder}/run/coordinator/journal.sqlite?mode=ro"
        with contextlib.closing(sqlite3.connect(journal, uri=True)) as journal:
            steps = journal.execute("SELECT at, seconds FROM steps ORDER BY stage, step").fetchall()
    result = {"ms": between(steps), "unit": "ms a step", "bound": BOUND, "met": between(steps) < BOUND}
    result |= {"steps": len(steps), "step_ms": 1000 * sum(seconds for _, seconds in steps) / len(steps)}
    return result, summary.line_of_overhead(result)


def between(steps: list[tuple[float, float]]) -> float:
    """Milliseconds a step that no step accounts for: of each step when it was recorded, and the seconds that it took.

    It is all that a worker does between two steps: it reports, and waits where nothing is granted. What it takes until a step is
    recorded, behind the worker's back, counts once for all steps.
    """
    if len(steps) < 2:
        raise Failed(f"a run of {STEPS} steps was expected where {len(steps)} are recorded")
    whole = steps[-1][0] - steps[0][0]
    return 1000 * (whole - sum(seconds for _, seconds in steps[1:])) / (len(steps) - 1)


def run(coordinator: str, worker: str, folder: pathlib.Path) -> None:
    """Does the run of FOLDER/run.yaml, on ports of the system's choosing."""
    with contextlib.ExitStack() as started:

        def start(name: str, *command: str) -> subprocess.Popen:
            log = started.enter_context(open(folder / f"{name}.log", "w"))
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log}
            process = subprocess.Popen(command, env=environment(1), text=True, start_new_session=True, **pipes)
            started.callback(end, process)
            return process

        def finish(name: str, process: subprocess.Popen) -> None:
            try:
                process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                raise Failed(f"the {name} has not ended after {PATIENCE} s: {last_words(name)}") from None
            if process.returncode != 0:
                raise Failed(f"the {name} ended with status {process.returncode}: {last_words(name)}")

        def last_words(name: str) -> str:
            return "\n".join((folder / f"{name}.log").read_text().splitlines()[-LAST_LINES:])

        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        serving = start("coordinator", coordinator, "serve", "--config", f"{folder}/run.yaml", *ports)
        address = re.search(r"grpc=(\S+)", serving.stdout.readline())
        if address is None:
            raise Failed(f"the coordinator did not say where it listens: {last_words('coordinator')}")
        finish("worker", start("worker", worker, "join", "--coordinator", f"http://{address[1]}", "--threads", "1"))
        finish("coordinator", serving)
