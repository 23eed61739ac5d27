"""The systems of the comparison: commands of three workers.

Each system appears with its default settings and with its fastest documented settings.
"""

import dataclasses
import pathlib
import socket
import sys

HERE = pathlib.Path(__file__).resolve().parent
PROGRAMS = pathlib.Path(sys.executable).parent
WORKERS = 3
# Each generation gets its own store. With a shared store a worker may read an address of the
# previous generation: https://github.com/pytorch/pytorch/issues/135712
STORE_PER_GENERATION = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclasses.dataclass
class System:
    """A system: the commands of its workers, which restart when they end."""

    workers: list[list[str]]
    # Command of a service that runs beside the workers.
    service: list[str] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun_agent_per_worker(*settings: str, **environment: str) -> System:
    """Starts torchrun with an agent for each worker, as on three machines.

    Failures and membership changes both count towards --max-restarts.
    """
    command = [str(PROGRAMS / "torchrun"), f"--nnodes=1:{WORKERS}", "--nproc-per-node=1", "--max-restarts=1000"]
    command += ["--rdzv-id=toy", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", *settings]
    return System([[*command, str(HERE / "with_torchrun.py")]] * WORKERS, environment=environment)


def torchrun_single_agent() -> System:
    """Starts torchrun with one agent for all workers, as on one machine: membership is fixed."""
    command = [str(PROGRAMS / "torchrun"), "--standalone", f"--nproc-per-node={WORKERS}", "--max-restarts=1000"]
    return System([[*command, str(HERE / "with_torchrun.py")]], environment=STORE_PER_GENERATION)


def torchft(*settings: str) -> System:
    """Starts torchft with a replica group for each worker, and one lighthouse."""
    port = free_port()
    lighthouse = [str(PROGRAMS / "torchft_lighthouse"), "--bind", f"127.0.0.1:{port}", "--min_replicas", "1", *settings]
    workers = [[sys.executable, str(HERE / "with_torchft.py")]] * WORKERS
    return System(workers, service=lighthouse, environment={"TORCHFT_LIGHTHOUSE": f"http://127.0.0.1:{port}"})


SYSTEMS = {
    "torchrun, 3 agents": torchrun_agent_per_worker,
    "torchrun, 3 agents, tuned": lambda: torchrun_agent_per_worker(
        "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1",
        **STORE_PER_GENERATION,
    ),
    "torchrun, 1 agent": torchrun_single_agent,
    # As in torchft's README.
    "torchft": lambda: torchft("--quorum_tick_ms", "100", "--join_timeout_ms", "10000"),
    "torchft, tuned": lambda: torchft(
        "--quorum_tick_ms", "10", "--join_timeout_ms", "100", "--heartbeat_timeout_ms", "1000"
    ),
}
