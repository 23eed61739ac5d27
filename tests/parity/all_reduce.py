"""Times all-reduces of torch.distributed between processes of this machine: the counterpart of ``worker bench all-reduce``."""

import argparse
import json
import os
import socket
import time

import torch
from torch import distributed, multiprocessing

WARM_UP = 2
# As ours: values repeat after so many, and all sums are exact.
PERIOD = 4096


def measure(rank: int, port: int, arguments: argparse.Namespace, queue: multiprocessing.Queue) -> None:
    """One rank. Puts the seconds of each sum into the queue."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    world = arguments.world
    distributed.init_process_group(arguments.backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    device = torch.device(arguments.device)
    base = torch.arange(arguments.bytes // 4, device=device).remainder(PERIOD).float()
    expected = base * world + world * (world - 1) / 2
    own = base + rank
    total = own.clone()
    together = torch.zeros(1, device=device)
    seconds = []
    for step in range(WARM_UP + arguments.steps):
        total.copy_(own)
        distributed.all_reduce(together)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        distributed.all_reduce(total)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
        assert torch.equal(total, expected), f"sum {step} is wrong"
        if step >= WARM_UP:
            seconds.append(elapsed)
    queue.put(seconds)
    distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--bytes", type=int, default=160_000_000)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    arguments.backend = "nccl" if arguments.device.startswith("cuda") else "gloo"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    multiprocessing.spawn(measure, (port, arguments, queue), nprocs=arguments.world)
    # A sum is there when the last rank has it.
    seconds = sorted(max(step) for step in zip(*(queue.get() for _ in range(arguments.world)), strict=True))
    median = seconds[len(seconds) // 2]
    print(
        json.dumps(
            {
                "world": arguments.world,
                "bytes": arguments.bytes,
                "bytes_per_s": arguments.bytes / median,
                "step_s": median,
                "fastest_s": seconds[0],
                "slowest_s": seconds[-1],
                "steps_s": seconds,
                "device": arguments.device,
                "threads": arguments.threads or torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
