"""Processes that are started again when they end, and the record of the steps that they apply."""

import os
import pathlib
import signal
import subprocess
import time
from typing import Callable, NamedTuple, TypeVar

from systems import System

T = TypeVar("T")
# Seconds within which processes have to end that were asked to.
GRACE = 10


class Step(NamedTuple):
    """That a process applied a step."""

    at: float
    number: int
    generation: int
    world: int
    pid: int


class Cluster:
    """A system's processes; each worker is due again as soon as it has ended, unless it is kept away."""

    def __init__(self, system: System, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        self.system = system
        self.folder = folder
        self.record = folder / "steps"
        self.record.touch()
        self.environment = os.environ | system.environment | {"ELASTIC_STEPS": str(self.record), "OMP_NUM_THREADS": "1"}
        self.starts = 0
        self.read = 0
        self.steps: list[Step] = []
        self.service = self.start(system.service) if system.service else None
        self.workers: list[subprocess.Popen | None] = [None for _ in system.workers]
        self.due = [0.0 for _ in system.workers]

    def start(self, command: list[str]) -> subprocess.Popen:
        self.starts += 1
        with open(self.folder / f"{self.starts:03}.log", "w") as log:
            return subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def tend(self) -> None:
        """Starts whoever has ended and is due, and reads what was recorded."""
        for place, command in enumerate(self.system.workers):
            worker = self.workers[place]
            if (worker is None or worker.poll() is not None) and time.monotonic() >= self.due[place]:
                self.workers[place] = self.start(command)
        with open(self.record) as record:
            record.seek(self.read)
            lines = record.read().splitlines()
            self.read = record.tell()
        for line in lines:
            at, *rest = line.split()
            self.steps.append(Step(float(at), *map(int, rest)))

    def wait(self, seconds: float, condition: Callable[[], T | None]) -> T | None:
        """What the condition says once it says something; None if that takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tend()
            if (found := condition()) is not None:
                return found
            time.sleep(0.01)
        return None

    def alive(self, pid: int) -> bool:
        """Whether this is still a process of this cluster: numbers of ended ones are given to others."""
        try:
            environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"ELASTIC_STEPS={self.record}".encode() in environment.split(b"\0")

    def kill(self, pid: int, away: float) -> None:
        """Kills a worker; if nobody else starts it again, it is away for so many seconds."""
        os.kill(pid, signal.SIGKILL)
        for place, worker in enumerate(self.workers):
            if worker is not None and worker.pid == pid:
                self.due[place] = time.monotonic() + away

    def stop(self) -> None:
        """Ends everything."""
        own = [process for process in [*self.workers, self.service] if process is not None]
        for process in own:
            process.terminate()
        for process in own:
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # A launcher that was killed leaves its worker behind.
        for pid in {step.pid for step in self.steps}:
            if self.alive(pid):
                os.kill(pid, signal.SIGKILL)
