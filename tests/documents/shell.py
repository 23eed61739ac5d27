"""A shell that is told one command after another, as a reader would."""

import os
import pathlib
import selectors
import signal
import subprocess
import time

# Longer than any command takes on a busy machine.
PATIENCE = 600


class Shell:
    """A bash in a folder. What it starts in the background ends with it."""

    def __init__(self, folder: pathlib.Path, environment: dict[str, str]):
        self.process = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.unread = b""

    def run(self, command: str) -> tuple[int, str]:
        """A command's status and what was written meanwhile."""
        marker = f"done-{time.monotonic_ns()}"
        self.process.stdin.write(f"{command}\nprintf '\\n%s %s\\n' {marker} $?\n".encode())
        self.process.stdin.flush()
        text = self.until(f"\n{marker} ".encode(), command)
        status = self.until(b"\n", command)
        return int(status), text

    def background(self, command: str, word: str) -> str:
        """Starts what runs on, and waits for a word from it."""
        self.process.stdin.write(f"{command.rstrip(' &')} &\n".encode())
        self.process.stdin.flush()
        return self.until(word.encode(), command)

    def until(self, word: bytes, command: str) -> str:
        deadline = time.monotonic() + PATIENCE
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while word not in self.unread:
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise TimeoutError(f"{command}: no {word.decode()!r} in {PATIENCE} s, but {self.text()}")
                read = os.read(self.process.stdout.fileno(), 1 << 16)
                if not read:
                    raise TimeoutError(f"{command}: the shell ended with {self.text()}")
                self.unread += read
        before, _, self.unread = self.unread.partition(word)
        return before.decode(errors="replace")

    def text(self) -> str:
        return self.unread.decode(errors="replace")[-2000:]

    def end(self) -> None:
        # Its jobs are in its session.
        for kind in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, kind)
                self.process.wait(30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
