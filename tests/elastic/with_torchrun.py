"""A worker under torchrun: resumes from the last checkpoint, and trains until it is killed."""

import os
import pathlib
import time

import torch
import torch.distributed as dist
from toy import StepRecorder, ToyModel

CHECKPOINT_EVERY = 100


def save(state: dict, to: pathlib.Path) -> None:
    """Writes a file under its final name only when it is complete: the writer may be killed."""
    partial = to.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, to)


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model, recorder, step = ToyModel(), StepRecorder(), 0
    checkpoint = pathlib.Path(os.environ["ELASTIC_STEPS"]).with_suffix(".checkpoint")
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state)
        step = state["step"]
    # The clock of rank 0 identifies a generation, because each agent has its own restart counter.
    generation = torch.tensor([time.time_ns()])
    dist.broadcast(generation, 0)
    while True:
        model.compute(step, rank)
        dist.all_reduce(model.gradient)
        model.gradient /= world_size
        model.optimizer.step()
        step += 1
        recorder.record(step, generation.item(), world_size)
        if rank == 0 and step % CHECKPOINT_EVERY == 0:
            save(model.state_dict() | {"step": step}, checkpoint)


if __name__ == "__main__":
    main()
