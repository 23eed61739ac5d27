"""Processes on loopback that end with the test."""

import http
import os
import pathlib
import signal
import subprocess
import time
import urllib.error
import urllib.request
from typing import Callable, TypeVar

T = TypeVar("T")
# Seconds; longer than any wait on a busy machine.
PATIENCE = 600
# Seconds within which processes have to end that were asked to.
GRACE = 20


class Failure(Exception):
    """What does not hold, in a line."""


def wait_for(what: str, ask: Callable[[], T | None]) -> T:
    """Asks again and again until there is something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.2)
    raise Failure(f"waited in vain for {what}")


def get(url: str) -> str | None:
    """What is there, if anybody answers who is ready to."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        raise Failure(f"{url}: {error.read().decode()}") from None
    except OSError:
        return None


class Processes:
    """All that was started."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen] = []

    def start(self, name: str, command: list) -> subprocess.Popen:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DICO_")}
        environment |= {"OMP_NUM_THREADS": "1"}
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                [str(word) for word in command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )
        self.started.append(process)
        return process

    def log(self, name: str) -> str:
        lines = (self.folder / f"{name}.log").read_text().splitlines()
        return "\n".join(lines[-10:])

    def stop(self) -> None:
        """Ends everything that has not ended."""
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
