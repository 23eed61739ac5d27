"""Runs commands, and parses the JSON object that they print."""

import json
import os
import pathlib
import signal
import subprocess
from collections.abc import Sequence

# Every command takes less even on a slow machine.
TIMEOUT_SECONDS = 3600
# Lines of a command's log that error messages repeat.
MAX_LOG_LINES = 10


class CommandError(Exception):
    """A command failed, timed out, or printed something unexpected."""


def environment(threads: int) -> dict[str, str]:
    """Returns the environment of the commands of all sides."""
    return os.environ | {"OMP_NUM_THREADS": str(threads)}


def python_command(program: str, libraries: str) -> list[str]:
    """Returns the command that starts the Python `program`.

    Removes folders with a libtorch from LD_LIBRARY_PATH (`libraries`): PyTorch would load that one
    in place of its own.
    """
    folders = [folder for folder in libraries.split(":") if folder]
    kept_folders = [folder for folder in folders if not list(pathlib.Path(folder).glob("libtorch*"))]
    prefix = [] if kept_folders == folders else ["env", f"LD_LIBRARY_PATH={':'.join(kept_folders)}"]
    return [*prefix, program, "-W", "ignore"]


def run_command(command: Sequence[str], threads: int) -> str:
    """Runs a command and returns its standard output. Kills all processes that it leaves running.

    Raises CommandError if the command cannot start, fails or times out.
    """
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, env=environment(threads), text=True, start_new_session=True, **pipes)
    except OSError as error:
        raise CommandError(f"{command[0]}: {error.strerror}") from None
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise CommandError(f"{' '.join(command)}\ntimeout: did not exit within {TIMEOUT_SECONDS} s") from None
    finally:
        kill_session(process)
    if process.returncode != 0:
        last = "\n".join(stderr.splitlines()[-MAX_LOG_LINES:])
        raise CommandError(f"{' '.join(command)}\nexited with status {process.returncode}: {last}")
    return stdout


def kill_session(process: subprocess.Popen) -> None:
    """Kills all processes of the session that `process` leads."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def parse_json_object(text: str) -> dict:
    """Parses the last line of `text` as a JSON object."""
    lines = text.strip().splitlines()
    try:
        parsed = json.loads(lines[-1]) if lines else None
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise CommandError(f"expected a JSON object, but the command printed: {lines[-1] if lines else 'nothing'}")
    return parsed
