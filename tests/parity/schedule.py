"""The warm-up of the published code: transformers' schedule, and Adam's updates with its rates.

Writes schedule.json.
"""

import math
from dataclasses import dataclass

import torch
from transformers import get_scheduler

import common
import formula

# `lr` is the peak rate. The file has rates as fractions of it.
ADAM = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8}
PARAMETERS = 16


@dataclass(frozen=True)
class Case:
    """A stage's steps, its `warmup_ratio`, and the steps (from 1) whose rates the file has."""

    steps: int
    warmup: float
    sampled_steps: tuple[int, ...]


CASES = (
    # The published stage of cross-entropy; no warm-up, as in the published stage of DiCO.
    Case(10_000, 0.05, (1, 2, 3, 250, 499, 500, 501, 502, 10_000)),
    Case(1_000, 0.0, (1, 2, 1_000)),
    # 4.6 steps of warm-up are rounded up to 5.
    Case(20, 0.23, tuple(range(1, 21))),
)
UPDATES = Case(8, 0.5, ())


def train(case: Case) -> tuple[list[float], list[list[float]]]:
    """Returns the rate of each step, and the parameters after it, with gradients by formula."""
    parameters = torch.nn.Parameter(formula.inputs("schedule.parameters", (PARAMETERS,)))
    optimizer = torch.optim.Adam([parameters], **ADAM)
    # As in `TrainingArguments.get_warmup_steps`.
    warmup = math.ceil(case.steps * case.warmup)
    scheduler = get_scheduler("constant_with_warmup", optimizer, num_warmup_steps=warmup)
    rates, states = [], []
    for step in range(1, case.steps + 1):
        rates.append(scheduler.get_last_lr()[0] / ADAM["lr"])
        parameters.grad = formula.inputs(f"schedule.gradient{step}", (PARAMETERS,))
        optimizer.step()
        scheduler.step()
        states.append(parameters.tolist())
    return rates, states


def describe(case: Case) -> dict:
    rates, _ = train(case)
    return {"steps": case.steps, "warmup": case.warmup, "rates": [[step, rates[step - 1]] for step in case.sampled_steps]}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    rates, states = train(UPDATES)
    updates = {"steps": UPDATES.steps, "warmup": UPDATES.warmup, "adam": ADAM, "rates": rates, "parameters": states}
    expected = {"versions": common.versions(), "schedules": [describe(case) for case in CASES], "updates": updates}
    common.write_json(arguments.out / "schedule.json", expected)


if __name__ == "__main__":
    main()
