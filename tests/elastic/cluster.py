"""Supervises a system's worker processes, and reads the records of the steps that they apply."""

import os
import pathlib
import signal
import subprocess
import time
from typing import Callable, NamedTuple, TypeVar

from systems import System

T = TypeVar("T")
# Seconds from SIGTERM to SIGKILL.
TERMINATION_TIMEOUT = 10


class Step(NamedTuple):
    """A record: a process applied a step."""

    # Seconds since the epoch.
    at: float
    number: int
    generation: int
    world_size: int
    pid: int


class Cluster:
    """The processes of a system. Restarts each worker when it ends, or after a delay (`kill`)."""

    def __init__(self, system: System, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        self.system = system
        self.folder = folder
        self.record_path = folder / "steps"
        self.record_path.touch()
        self.environment = os.environ | system.environment | {"ELASTIC_STEPS": str(self.record_path), "OMP_NUM_THREADS": "1"}
        self.starts = 0
        self.read_position = 0
        self.steps: list[Step] = []
        self.service = self.start(system.service) if system.service else None
        self.workers: list[subprocess.Popen | None] = [None for _ in system.workers]
        self.restart_at = [0.0 for _ in system.workers]

    def start(self, command: list[str]) -> subprocess.Popen:
        self.starts += 1
        with open(self.folder / f"{self.starts:03}.log", "w") as log:
            return subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def poll(self) -> None:
        """Restarts workers that have ended and whose delay is over, and reads new records."""
        for index, command in enumerate(self.system.workers):
            worker = self.workers[index]
            if (worker is None or worker.poll() is not None) and time.monotonic() >= self.restart_at[index]:
                self.workers[index] = self.start(command)
        with open(self.record_path) as record:
            record.seek(self.read_position)
            lines = record.read().splitlines()
            self.read_position = record.tell()
        for line in lines:
            at, *rest = line.split()
            self.steps.append(Step(float(at), *map(int, rest)))

    def wait(self, seconds: float, condition: Callable[[], T | None]) -> T | None:
        """Waits until the condition returns a value, and returns it; None at the timeout."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.poll()
            if (result := condition()) is not None:
                return result
            time.sleep(0.01)
        return None

    def is_alive(self, pid: int) -> bool:
        """Returns whether the process is one of this cluster: the system reuses process ids."""
        try:
            environment = pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return f"ELASTIC_STEPS={self.record_path}".encode() in environment.split(b"\0")

    def kill(self, pid: int, restart_delay: float) -> None:
        """Kills a worker, which restarts after `restart_delay` seconds or by its launcher."""
        os.kill(pid, signal.SIGKILL)
        for index, worker in enumerate(self.workers):
            if worker is not None and worker.pid == pid:
                self.restart_at[index] = time.monotonic() + restart_delay

    def stop(self) -> None:
        """Ends all processes."""
        processes = [process for process in [*self.workers, self.service] if process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(TERMINATION_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # The worker of a killed launcher still runs.
        for pid in {step.pid for step in self.steps}:
            if self.is_alive(pid):
                os.kill(pid, signal.SIGKILL)
