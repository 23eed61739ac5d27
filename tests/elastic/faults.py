"""Kills workers by the rules of the chaos run, and measures the cost of each fault."""

import os
import pathlib
import random
import time
from typing import Callable, NamedTuple

from cluster import Cluster
from systems import WORKERS, System

# Seconds, as in the chaos run: from a recovery to the next fault, and until a worker restarts.
MAX_PAUSE = 1.5
MAX_RESTART_DELAY = 0.5
# Seconds. Without a step within this time the system has not recovered from the fault.
RECOVERY_TIMEOUT = 120
# The measurement of a system ends after this many faults without recovery.
MAX_UNRECOVERED = 5


class FaultCost(NamedTuple):
    """The cost of a fault. Redone steps include the step in flight."""

    seconds: float
    redone: int
    survivors_restarted: bool


def stable_generation(cluster: Cluster, pause: float) -> int | None:
    """Returns the last generation once all workers have trained in it for `pause` seconds."""
    if not cluster.steps:
        return None
    generation = max(step.generation for step in cluster.steps)
    full_steps = (step for step in cluster.steps if step.generation == generation and step.world_size == WORKERS)
    first = min((step.at for step in full_steps), default=None)
    return generation if first is not None and time.time() - first >= pause else None


def inject_fault(cluster: Cluster, rng: random.Random) -> FaultCost | None:
    """Kills a random worker, and returns the cost; None if the system does not recover."""
    pause = rng.uniform(0, MAX_PAUSE)
    generation = cluster.wait(RECOVERY_TIMEOUT, lambda: stable_generation(cluster, pause))
    if generation is None:
        return None
    members = {step.pid for step in cluster.steps if step.generation == generation}
    members = sorted(pid for pid in members if cluster.is_alive(pid))
    victim = rng.choice(members)
    killed_at = time.time()
    cluster.kill(victim, rng.uniform(0, MAX_RESTART_DELAY))

    def first_step_after_fault():
        return next((step for step in cluster.steps if step.generation > generation), None)

    first = cluster.wait(RECOVERY_TIMEOUT, first_step_after_fault)
    if first is None:
        return None
    last = max(step.number for step in cluster.steps if step.generation == generation)
    restarted = not all(cluster.is_alive(pid) for pid in members if pid != victim)
    return FaultCost(first.at - killed_at, last - first.number + 2, restarted)


def measure(system: Callable[[], System], faults: int, folder: pathlib.Path, seed: int) -> dict:
    """Injects faults into a system, and returns their statistics.

    The run starts over after a fault without recovery, and ends after MAX_UNRECOVERED of these.
    """
    rng = random.Random(seed)
    costs: list[FaultCost] = []
    unrecovered = 0
    load_averages = [os.getloadavg()[0]]
    step_seconds: list[float] = []
    while len(costs) + unrecovered < faults and unrecovered < MAX_UNRECOVERED:
        cluster = Cluster(system(), folder / f"run-{unrecovered}")
        try:
            while len(costs) + unrecovered < faults:
                cost = inject_fault(cluster, rng)
                if cost is None:
                    unrecovered += 1
                    break
                costs.append(cost)
                load_averages.append(os.getloadavg()[0])
                print(f"  {cost.seconds:.2f} s, {cost.redone} redone", flush=True)
        finally:
            cluster.stop()
        step_seconds += seconds_per_step(cluster)
    return {
        "faults": len(costs) + unrecovered,
        "recovered": len(costs),
        "recovery_s": median_and_max([cost.seconds for cost in costs]),
        "redone_steps_max": max((cost.redone for cost in costs), default=None),
        "survivors_restarted": any(cost.survivors_restarted for cost in costs) if costs else None,
        "step_s_median": median_and_max(step_seconds)["median"],
        "load_average": median_and_max(load_averages),
        "costs": [cost._asdict() for cost in costs],
    }


def seconds_per_step(cluster: Cluster) -> list[float]:
    """Returns the seconds between steps of a process within a generation of all three workers."""
    step_seconds = []
    last: dict[int, tuple[int, float]] = {}
    for step in cluster.steps:
        before = last.get(step.pid)
        if step.world_size == WORKERS and before and before[0] == step.generation:
            step_seconds.append(step.at - before[1])
        last[step.pid] = (step.generation, step.at)
    return step_seconds


def median_and_max(values: list[float]) -> dict:
    """Returns the lower median and the maximum, as the chaos run does."""
    ordered = sorted(values)
    return {"median": ordered[(len(ordered) - 1) // 2], "max": ordered[-1]} if ordered else {"median": None, "max": None}
