"""Runs a real Slurm on this machine: munged, slurmctld and two slurmd, on free ports."""

import contextlib
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from typing import Callable, TypeVar

T = TypeVar("T")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "sinfo")
# Two nodes, so that one can fail. Each has two GPUs, which are links to /dev/null.
NODES = ("first", "second")
CONFIGURATION = """\
ClusterName=dico
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=30
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,requeue_delay=0
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=60 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""


def wait_for(
    description: str, poll: Callable[[], T | None], seconds: float = 300, explain: Callable[[], str] = str
) -> T:
    """Calls `poll` until it returns a true value, and returns that value.

    Raises AssertionError with the text of `explain` at the timeout.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := poll():
            return result
        time.sleep(0.1)
    raise AssertionError(f"timeout: waited {seconds:.0f} s for {description}\n{explain()}")


def free_ports(count: int) -> list[int]:
    """Returns ports that are free now: Slurm cannot choose ports itself."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


class Cluster:
    """The daemons of a Slurm cluster."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": f"{folder}/slurm.conf"}
        self.daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        """Starts all daemons, and waits until the nodes are idle."""
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(1024))
        ports = free_ports(1 + len(NODES))
        nodes = []
        for name, port in zip(NODES, ports[1:]):
            (self.folder / f"spool-{name}").mkdir()
            gpus = [self.folder / f"{name}-gpu{number}" for number in range(2)]
            for gpu in gpus:
                # Slurm requires a device file. Any device will do.
                gpu.symlink_to("/dev/null")
            nodes.append(f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} "
                         "CPUs=4 RealMemory=1000 Gres=gpu:2")
        gres = [f"NodeName={name} Name=gpu File={self.folder}/{name}-gpu[0-1]\n" for name in NODES]
        (self.folder / "gres.conf").write_text("".join(gres))
        host = socket.gethostname().split(".")[0]
        text = CONFIGURATION.format(host=host, folder=self.folder, ports=ports, nodes="\n".join(nodes))
        (self.folder / "slurm.conf").write_text(text)
        self.start_daemon("munged", "--force", "--foreground", f"--key-file={key}", f"--socket={self.folder}/munge.socket",
                    f"--pid-file={self.folder}/munge.pid", f"--seed-file={self.folder}/munge.seed",
                    f"--log-file={self.folder}/munge.log")
        wait_for("munged", (self.folder / "munge.socket").exists, explain=self.logs)
        self.start_daemon("slurmctld", "-D")
        for name in NODES:
            self.start_node(name)
        states = lambda: self.query("sinfo", "--noheader", "--Node", "--partition=low", "--format=%T").split()
        ready = lambda: states() == ["idle"] * len(NODES)
        wait_for("idle nodes", ready, explain=self.logs)

    def start_daemon(self, *command: str, name: str = "") -> None:
        name = name or command[0]
        with open(self.folder / f"{name}.out", "a") as log:
            daemon = subprocess.Popen(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.daemons[name] = daemon

    def query(self, *command: str) -> str:
        """Runs a Slurm command, and returns its output; empty if it fails."""
        result = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        return result.stdout if result.returncode == 0 else ""

    def run(self, *command: str, env: dict[str, str] | None = None, cwd: pathlib.Path | None = None) -> str:
        """Runs a Slurm command that must succeed, and returns its output."""
        result = subprocess.run(command, env=env or self.environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{command} failed: {result.stderr}\n{self.logs()}"
        return result.stdout

    def job(self, number: str) -> dict[str, str]:
        """Returns the fields of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.query("scontrol", "show", "job", number)))

    def node(self, name: str) -> dict[str, str]:
        """Returns the fields of a node."""
        return dict(re.findall(r"(\w+)=(\S*)", self.query("scontrol", "show", "node", name)))

    def logs(self) -> str:
        """Returns the ends of all logs of the daemons."""
        names = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "".join(f"--- {name.name}\n{last_lines(name)}" for name in names)

    def processes(self, program: str = "", **environment: str) -> list[int]:
        """Returns the ids of processes of this cluster.

        `program`: start of the program's name. `environment`: variables that a process must have.
        """
        required = {"SLURM_CONF": self.environment["SLURM_CONF"]} | environment
        variables = {f"{name}={value}".encode() for name, value in required.items()}
        process_ids = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            # The process may end at any time.
            with contextlib.suppress(OSError):
                process_variables = set((process / "environ").read_bytes().split(b"\0"))
                if variables <= process_variables and (process / "comm").read_text().startswith(program):
                    process_ids.append(int(process.name))
        return process_ids

    def start_node(self, node: str) -> None:
        """Starts a node."""
        self.start_daemon("slurmd", "-D", "-N", node, name=node)

    def crash_node(self, node: str) -> None:
        """Simulates a power cut: kills slurmd and all tasks of a node at once."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        tasks = self.processes(SLURMD_NODENAME=node)
        kill(parents(tasks, "slurmstepd") + tasks)

    def stop(self) -> None:
        """Stops all daemons, and kills the remaining processes of jobs."""
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        tasks = self.processes()
        kill(parents(tasks, "slurmstepd") + tasks)


def parents(processes: list[int], program: str) -> list[int]:
    """Returns the parents of processes, as far as they run `program`."""
    parent_ids = set()
    for process in processes:
        with contextlib.suppress(OSError):
            # The name ends with the last parenthesis; state and parent follow.
            parent = int(pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
            if pathlib.Path(f"/proc/{parent}/comm").read_text().strip() == program:
                parent_ids.add(parent)
    return list(parent_ids)


def kill(processes: list[int]) -> None:
    """Sends SIGKILL to processes. Ignores processes that have ended."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def missing() -> list[str]:
    """Returns the required programs that are not installed."""
    return [program for program in PROGRAMS if not shutil.which(program)]


def last_lines(path: pathlib.Path, count: int = 20) -> str:
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    return "".join(lines[-count:])
