"""Times all-reduces of torch.distributed on this machine, like ``worker bench all-reduce``."""

import argparse
import json
import os
import socket
import time

import torch
from torch import distributed, multiprocessing

WARM_UP = 2
# As in `worker bench all-reduce`: values repeat after this many, so that all sums are exact.
PERIOD = 4096


def measure(rank: int, port: int, arguments: argparse.Namespace, queue: multiprocessing.Queue) -> None:
    """Runs one rank, and puts the seconds of each all-reduce into the queue."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    world_size = arguments.world
    distributed.init_process_group(arguments.backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    device = torch.device(arguments.device)
    base = torch.arange(arguments.bytes // 4, device=device).remainder(PERIOD).float()
    expected = base * world_size + world_size * (world_size - 1) / 2
    rank_values = base + rank
    total = rank_values.clone()
    barrier = torch.zeros(1, device=device)
    seconds = []
    for step in range(WARM_UP + arguments.steps):
        total.copy_(rank_values)
        distributed.all_reduce(barrier)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        distributed.all_reduce(total)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed = time.perf_counter() - started
        assert torch.equal(total, expected), f"all-reduce {step} has a wrong sum"
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
    # An all-reduce is complete when the last rank has the result.
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
