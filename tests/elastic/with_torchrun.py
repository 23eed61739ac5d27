"""A worker under torchrun: from the last checkpoint on, until it is ended."""

import os
import pathlib
import time

import torch
import torch.distributed as dist
from toy import Record, Toy

CHECKPOINT_EVERY = 100


def save(state: dict, to: pathlib.Path) -> None:
    """Under its final name only when it is whole: whoever writes it may be killed."""
    partial = to.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, to)


def main() -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    toy, record, step = Toy(), Record(), 0
    checkpoint = pathlib.Path(os.environ["ELASTIC_STEPS"]).with_suffix(".checkpoint")
    if checkpoint.exists():
        state = torch.load(checkpoint)
        toy.load_state_dict(state)
        step = state["step"]
    # The first rank's clock tells generations apart: restarts are counted by each agent for itself.
    generation = torch.tensor([time.time_ns()])
    dist.broadcast(generation, 0)
    while True:
        toy.compute(step, rank)
        dist.all_reduce(toy.gradient)
        toy.gradient /= world
        toy.optimizer.step()
        step += 1
        record.applied(step, generation.item(), world)
        if rank == 0 and step % CHECKPOINT_EVERY == 0:
            save(toy.state_dict() | {"step": step}, checkpoint)


if __name__ == "__main__":
    main()
