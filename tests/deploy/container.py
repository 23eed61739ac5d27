"""Runs containers without an engine: a process with its own root and this machine's libraries."""

import os
import pathlib
import shlex
import subprocess
import time
import unittest
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from containerfile import stages

PROGRAMS = pathlib.Path(os.environ["PROGRAMS"]).resolve()
LIBTORCH = pathlib.Path(os.environ["LIBTORCH"]).resolve()
# Outputs of the builder stages -> the files of this machine that replace them.
BUILDER_OUTPUTS = {
    ("coordinator-builder", "/out/coordinator"): PROGRAMS / "coordinator",
    ("worker-builder", "/out/worker"): PROGRAMS / "worker",
    ("worker-builder", "/opt/libtorch/lib"): LIBTORCH / "lib",
}
# Every wait here takes less even on a busy machine.
TIMEOUT_SECONDS = 600
EMPTY: Mapping[str, str] = MappingProxyType({})

requires_namespaces = unittest.skipUnless("IN_NAMESPACES" in os.environ, "needs root, for namespaces")


class Container:
    """A running container of a stage of deploy/Containerfile, or of a `program` of this machine."""

    def __init__(
        self,
        folder: pathlib.Path,
        stage: str | None,
        arguments: list[str],
        *,
        program: str = "",
        user: str = "",
        groups: str = "",
        environment: Mapping[str, str] = EMPTY,
        mounts: Sequence[tuple[pathlib.Path, str, bool]] = (),
        hosts: Mapping[str, str] = EMPTY,
        read_only: bool = True,
    ):
        folder.mkdir(parents=True)
        image = stages()[stage] if stage else None
        copied = [
            (BUILDER_OUTPUTS[origin, source], target + (source.rsplit("/")[-1] if target.endswith("/") else ""))
            for origin, source, target in (image.copied if image else [])
        ]
        entrypoint = image.entrypoint if image else [program]
        uid, gid = (user or (image.user if image else "65534:65534")).split(":")
        etc = folder / "etc"
        etc.mkdir()
        (etc / "hosts").write_text(
            "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **hosts}.items())
        )
        (etc / "nsswitch.conf").write_text("hosts: files\n")
        root = shlex.quote(str(folder / "root"))
        script = [f"mkdir {root}", f"mount -t tmpfs tmpfs {root}", f"cd {root}", "mkdir dev proc sys etc tmp usr"]
        # Devices stay writable on a read-only mount.
        script += [f"mount --rbind /{name} {name}" for name in ("dev", "proc", "usr")]
        script += ["mount -t tmpfs tmpfs usr/local", "mkdir usr/local/bin", f"mount --bind {shlex.quote(str(etc))} etc"]
        for name in ("bin", "sbin", "lib", "lib64"):
            script += [f"[ ! -L /{name} ] || cp -P /{name} {name}"]
        for source, target, writable in [(s, t, False) for s, t in copied] + sorted(mounts, key=lambda mount: mount[1]):
            source_word, target_word = shlex.quote(str(source)), shlex.quote(target.lstrip("/"))
            script += [
                f"mkdir -p {target_word}" if source.is_dir() else f"mkdir -p $(dirname {target_word}) && touch {target_word}",
                f"mount --bind {source_word} {target_word}",
            ]
            script += [] if writable else [f"mount -o remount,bind,ro {target_word}"]
        script += ["mount -o remount,bind,ro usr/local", "mount -o remount,bind,ro etc"]
        script += ["mount -o remount,bind,ro ."] if read_only else []
        script += ['exec chroot . /usr/bin/setpriv "$@"']
        credentials = [
            f"--reuid={uid}",
            f"--regid={gid}",
            f"--groups={groups or gid}",
            "--inh-caps=-all",
            "--bounding-set=-all",
            "--no-new-privs",
            "--",
        ]
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", "; ".join(script), "sh"]
        path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command + credentials + entrypoint + arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=path | (image.environment if image else {}) | environment,
            )

    def terminate(self) -> None:
        self.process.terminate()

    def wait(self) -> int:
        """Waits for the end of the process, and returns its exit status."""
        return self.process.wait(TIMEOUT_SECONDS)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def get(url: str) -> tuple[int, str]:
    """Sends a GET request like a probe or a scrape. Returns (0, error) if there is no response."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def wait_until(description: str, condition, *containers: Container) -> None:
    """Waits for a condition.

    Raises AssertionError with the ends of all logs at the timeout, or if a container fails.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        failed = any(container.process.poll() not in (None, 0) for container in containers)
        if failed or time.monotonic() > deadline:
            logs = "".join(f"\n{c.log}: status {c.process.poll()}\n{c.output()[-2000:]}" for c in containers)
            raise AssertionError(f"waited for {description}: it did not happen{logs}")
        time.sleep(0.05)


def metric(exposition: str, name: str) -> float:
    """Returns the first value of a metric; 0 if there is none."""
    lines = (line for line in exposition.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return next((float(line.split()[-1]) for line in lines), 0.0)
