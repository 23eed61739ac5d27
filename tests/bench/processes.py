"""Commands that print one JSON object."""

import json
import os
import pathlib
import signal
import subprocess
from collections.abc import Sequence

# Seconds; longer than any command takes on a slow machine.
PATIENCE = 3600
# Lines of what a command said that are worth repeating.
LAST_LINES = 10


class Failed(Exception):
    """A command that did not do what it should, and what it said."""


def environment(threads: int) -> dict[str, str]:
    """That of all sides."""
    return os.environ | {"OMP_NUM_THREADS": str(threads)}


def python(program: str, libraries: str) -> list[str]:
    """How a Python is started where LD_LIBRARY_PATH is `libraries`: without our libtorch there, which would be taken for PyTorch's."""
    folders = [folder for folder in libraries.split(":") if folder]
    kept = [folder for folder in folders if not list(pathlib.Path(folder).glob("libtorch*"))]
    without = [] if kept == folders else ["env", f"LD_LIBRARY_PATH={':'.join(kept)}"]
    return [*without, program, "-W", "ignore"]


def output(command: Sequence[str], threads: int) -> str:
    """What a command prints, with all that it started ended when this returns."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, env=environment(threads), text=True, start_new_session=True, **pipes)
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from None
    try:
        printed, said = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)}\nhas not ended after {PATIENCE} s") from None
    finally:
        end(process)
    if process.returncode != 0:
        last = "\n".join(said.splitlines()[-LAST_LINES:])
        raise Failed(f"{' '.join(command)}\nended with status {process.returncode}: {last}")
    return printed


def end(process: subprocess.Popen) -> None:
    """Ends a process that leads a session, and whatever it has left running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def printed_object(text: str) -> dict:
    """The JSON object in the last line of what was printed."""
    lines = text.strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Failed(f"a JSON object was expected where this was printed: {lines[-1] if lines else 'nothing'}")
    return found
