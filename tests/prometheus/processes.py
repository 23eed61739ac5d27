"""Starts processes on loopback, and stops them with the test."""

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
# Every wait takes less even on a busy machine.
TIMEOUT_SECONDS = 600
# Seconds from SIGTERM to SIGKILL.
TERMINATION_TIMEOUT = 20


class CheckError(Exception):
    """A check failed; the message is one line."""


def wait_for(description: str, poll: Callable[[], T | None]) -> T:
    """Calls `poll` until it returns a true value, and returns that value.

    Raises CheckError at the timeout.
    """
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        if result := poll():
            return result
        time.sleep(0.2)
    raise CheckError(f"timeout: waited for {description}")


def get(url: str) -> str | None:
    """Sends a GET request. Returns None if there is no response, or if the service is not ready."""
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:
            return None
        raise CheckError(f"{url}: {error.read().decode()}") from None
    except OSError:
        return None


class Processes:
    """The processes of the test and their logs."""

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
        """Terminates all processes."""
        for process in self.started:
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(TERMINATION_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
