"""A shell that runs one command after another, like a reader's."""

import os
import pathlib
import selectors
import signal
import subprocess
import time

# Every command takes less even on a busy machine.
TIMEOUT_SECONDS = 600


class Shell:
    """A bash process in a folder. `end` also ends its background processes."""

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
        """Runs a command, and returns its status and output."""
        marker = f"done-{time.monotonic_ns()}"
        self.process.stdin.write(f"{command}\nprintf '\\n%s %s\\n' {marker} $?\n".encode())
        self.process.stdin.flush()
        text = self.read_until(f"\n{marker} ".encode(), command)
        status = self.read_until(b"\n", command)
        return int(status), text

    def background(self, command: str, marker: str) -> str:
        """Starts a background process, and waits for its first line."""
        self.process.stdin.write(f"{command.rstrip(' &')} &\n".encode())
        self.process.stdin.flush()
        return self.read_until(marker.encode(), command)

    def read_until(self, marker: bytes, command: str) -> str:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while marker not in self.unread:
                if not selector.select(max(0, deadline - time.monotonic())):
                    raise TimeoutError(f"{command}: no {marker.decode()!r} in {TIMEOUT_SECONDS} s, but {self.unread_text()}")
                read = os.read(self.process.stdout.fileno(), 1 << 16)
                if not read:
                    raise TimeoutError(f"{command}: the shell ended with {self.unread_text()}")
                self.unread += read
        before, _, self.unread = self.unread.partition(marker)
        return before.decode(errors="replace")

    def unread_text(self) -> str:
        return self.unread.decode(errors="replace")[-2000:]

    def end(self) -> None:
        # Background jobs belong to the shell's process group.
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(30)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass
