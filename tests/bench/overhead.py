"""Measures the time per step that a coordinator costs, in a run of one worker."""

import contextlib
import pathlib
import re
import sqlite3
import subprocess
import tempfile

import summary
from processes import MAX_LOG_LINES, CommandError, environment, kill_session, run_command

STEPS = 400
# Upper bound of the time between two steps.
BOUND_MS = 2
# The run takes less even on a slow machine.
TIMEOUT_SECONDS = 1200
# Short steps are the worst case, so the captioner is small and captions are few.
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


def measure(coordinator: str, worker: str) -> tuple[dict, str]:
    """Measures the time from the end of a step to the start of the next.

    Returns the result and its line of the table.
    """
    with tempfile.TemporaryDirectory(prefix="dico-bench-") as name:
        folder = pathlib.Path(name)
        run_command([worker, "synthesize", "--out", f"{folder}/world", "--images", "100", "--seed", "7"], 1)
        (folder / "run.yaml").write_text(RUN_FILE.format(folder=folder, steps=STEPS))
        train(coordinator, worker, folder)
        journal = f"file:{folder}/run/coordinator/journal.sqlite?mode=ro"
        with contextlib.closing(sqlite3.connect(journal, uri=True)) as journal:
            steps = journal.execute("SELECT at, seconds FROM steps ORDER BY stage, step").fetchall()
    result = {"ms": milliseconds_between_steps(steps), "unit": "ms per step", "bound": BOUND_MS, "met": milliseconds_between_steps(steps) < BOUND_MS}
    result |= {"steps": len(steps), "step_ms": 1000 * sum(seconds for _, seconds in steps) / len(steps)}
    return result, summary.overhead_line(result)


def milliseconds_between_steps(steps: list[tuple[float, float]]) -> float:
    """Returns the mean time between two steps. `steps`: (time of the record, seconds of the step).

    Between two steps a worker reports, and waits for a grant. The latency from the end of a step to
    its record counts once for all steps, because recording does not block the worker.
    """
    if len(steps) < 2:
        raise CommandError(f"expected a run of {STEPS} steps, but the journal has {len(steps)}")
    duration = steps[-1][0] - steps[0][0]
    return 1000 * (duration - sum(seconds for _, seconds in steps[1:])) / (len(steps) - 1)


def train(coordinator: str, worker: str, folder: pathlib.Path) -> None:
    """Trains the run FOLDER/run.yaml to its end, on free ports."""
    with contextlib.ExitStack() as started:

        def start(name: str, *command: str) -> subprocess.Popen:
            log = started.enter_context(open(folder / f"{name}.log", "w"))
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log}
            process = subprocess.Popen(command, env=environment(1), text=True, start_new_session=True, **pipes)
            started.callback(kill_session, process)
            return process

        def finish(name: str, process: subprocess.Popen) -> None:
            try:
                process.communicate(timeout=TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                raise CommandError(f"timeout: the {name} did not exit within {TIMEOUT_SECONDS} s: {end_of_log(name)}") from None
            if process.returncode != 0:
                raise CommandError(f"the {name} exited with status {process.returncode}: {end_of_log(name)}")

        def end_of_log(name: str) -> str:
            return "\n".join((folder / f"{name}.log").read_text().splitlines()[-MAX_LOG_LINES:])

        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        coordinator_process = start("coordinator", coordinator, "serve", "--config", f"{folder}/run.yaml", *ports)
        address = re.search(r"grpc=(\S+)", coordinator_process.stdout.readline())
        if address is None:
            raise CommandError(f"the coordinator did not print its addresses: {end_of_log('coordinator')}")
        finish("worker", start("worker", worker, "join", "--coordinator", f"http://{address[1]}", "--threads", "1"))
        finish("coordinator", coordinator_process)
