"""Runs a container without an engine: a process in a root of its own, with this machine's libraries."""

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
# What the builders leave, as this machine has it.
BUILT = {
    ("coordinator-builder", "/out/coordinator"): PROGRAMS / "coordinator",
    ("worker-builder", "/out/worker"): PROGRAMS / "worker",
    ("worker-builder", "/opt/libtorch/lib"): LIBTORCH / "lib",
}
# Longer than anything here takes on a busy machine.
PATIENCE = 600
NOTHING: Mapping[str, str] = MappingProxyType({})

apart = unittest.skipUnless("APART" in os.environ, "needs root, for namespaces")


class Container:
    """A container of a stage of deploy/Containerfile, or of a `program` of this machine; it runs from the start."""

    def __init__(
        self,
        folder: pathlib.Path,
        stage: str | None,
        arguments: list[str],
        *,
        program: str = "",
        user: str = "",
        groups: str = "",
        environment: Mapping[str, str] = NOTHING,
        mounts: Sequence[tuple[pathlib.Path, str, bool]] = (),
        hosts: Mapping[str, str] = NOTHING,
        read_only: bool = True,
    ):
        folder.mkdir(parents=True)
        image = stages()[stage] if stage else None
        copied = [
            (BUILT[origin, source], target + (source.rsplit("/")[-1] if target.endswith("/") else ""))
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
        # A device is writable where its file system is not.
        script += [f"mount --rbind /{name} {name}" for name in ("dev", "proc", "usr")]
        script += ["mount -t tmpfs tmpfs usr/local", "mkdir usr/local/bin", f"mount --bind {shlex.quote(str(etc))} etc"]
        for name in ("bin", "sbin", "lib", "lib64"):
            script += [f"[ ! -L /{name} ] || cp -P /{name} {name}"]
        for source, target, writable in [(s, t, False) for s, t in copied] + sorted(mounts, key=lambda mount: mount[1]):
            here, there = shlex.quote(str(source)), shlex.quote(target.lstrip("/"))
            script += [
                f"mkdir -p {there}" if source.is_dir() else f"mkdir -p $(dirname {there}) && touch {there}",
                f"mount --bind {here} {there}",
            ]
            script += [] if writable else [f"mount -o remount,bind,ro {there}"]
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

    def ask_to_end(self) -> None:
        self.process.terminate()

    def status(self) -> int:
        """How it ended; waits for that."""
        return self.process.wait(PATIENCE)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def get(url: str) -> tuple[int, str]:
    """What a probe or a scrape gets; (0, ...) where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def wait_until(what: str, condition, *containers: Container) -> None:
    """Waits for a condition, or fails, also where a container does, with the end of what all of them wrote."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        failed = any(container.process.poll() not in (None, 0) for container in containers)
        if failed or time.monotonic() > deadline:
            logs = "".join(f"\n{c.log}: status {c.process.poll()}\n{c.output()[-2000:]}" for c in containers)
            raise AssertionError(f"{what} does not come{logs}")
        time.sleep(0.05)


def metric(exposition: str, name: str) -> float:
    """The first value of a metric, 0 where it has none."""
    lines = (line for line in exposition.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return next((float(line.split()[-1]) for line in lines), 0.0)
