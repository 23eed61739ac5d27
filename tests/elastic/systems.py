"""What is compared: how each system's three workers are started, with its own defaults and with its fastest documented settings."""

import dataclasses
import pathlib
import socket
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = pathlib.Path(sys.executable).parent
WORKERS = 3
# A store for each generation, so that nobody reads an address of the last one: https://github.com/pytorch/pytorch/issues/135712
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclasses.dataclass
class System:
    """Commands that are started, and started again when they end."""

    workers: list[list[str]]
    # What has to be there all the time beside them.
    service: list[str] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def agents(*settings: str, **environment: str) -> System:
    """torchrun with an agent for each worker, as on three machines; restarts and changes of members count as restarts."""
    command = [str(PROGRAMS / "torchrun"), f"--nnodes=1:{WORKERS}", "--nproc-per-node=1", "--max-restarts=1000"]
    command += ["--rdzv-id=toy", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", *settings]
    return System([[*command, str(HERE / "with_torchrun.py")]] * WORKERS, environment=environment)


def agent() -> System:
    """torchrun with one agent for all workers, as on one machine: nobody can join or leave."""
    command = [str(PROGRAMS / "torchrun"), "--standalone", f"--nproc-per-node={WORKERS}", "--max-restarts=1000"]
    return System([[*command, str(HERE / "with_torchrun.py")]], environment=OWN_STORE)


def torchft(*settings: str) -> System:
    """A replica group for each worker and one lighthouse."""
    port = free_port()
    lighthouse = [str(PROGRAMS / "torchft_lighthouse"), "--bind", f"127.0.0.1:{port}", "--min_replicas", "1", *settings]
    workers = [[sys.executable, str(HERE / "with_torchft.py")]] * WORKERS
    return System(workers, service=lighthouse, environment={"TORCHFT_LIGHTHOUSE": f"http://127.0.0.1:{port}"})


SYSTEMS = {
    "torchrun, 3 agents": agents,
    "torchrun, 3 agents, tuned": lambda: agents(
        "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1",
        **OWN_STORE,
    ),
    "torchrun, 1 agent": agent,
    # As its README starts it.
    "torchft": lambda: torchft("--quorum_tick_ms", "100", "--join_timeout_ms", "10000"),
    "torchft, tuned": lambda: torchft(
        "--quorum_tick_ms", "10", "--join_timeout_ms", "100", "--heartbeat_timeout_ms", "1000"
    ),
}
