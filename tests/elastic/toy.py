"""The training load: a model as large as the captioner of the chaos run, with one flat gradient.

Records every applied step.
"""

import os
import time

import torch
from torch import nn

# 9 (256 x 256 + 256) = 592,128 parameters; the captioner of the chaos run has 592,320.
LAYERS = 9
WIDTH = 256
# Rows of a worker per step. With these a step of three workers on two cores takes about as long as
# in the chaos run.
ROWS = 384


class ToyModel:
    """A model with its optimizer, whose gradients are views of one flat buffer."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        layers = [layer for _ in range(LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.GELU())]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)
        parameters = list(self.model.parameters())
        self.gradient = torch.zeros(sum(parameter.numel() for parameter in parameters))
        views = self.gradient.split([parameter.numel() for parameter in parameters])
        for parameter, view in zip(parameters, views):
            parameter.grad = view.view_as(parameter)

    def compute(self, step: int, rank: int) -> None:
        """Writes the gradient of this rank's rows into the flat buffer."""
        self.gradient.zero_()
        generator = torch.Generator().manual_seed(step * 1000 + rank)
        rows = torch.randn(ROWS, WIDTH, generator=generator)
        (self.model(rows) - rows).square().mean().backward()

    def state_dict(self) -> dict:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


class StepRecorder:
    """Appends a line for each step that this process applies to the file that all workers share."""

    def __init__(self) -> None:
        self.file = os.open(os.environ["ELASTIC_STEPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def record(self, step: int, generation: int, world_size: int) -> None:
        os.write(self.file, f"{time.time():.6f} {step} {generation} {world_size} {os.getpid()}\n".encode())
