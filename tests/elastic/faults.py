"""Kills workers one at a time, by the rules of the chaos run, and measures what that costs."""

import os
import pathlib
import random
import time
from typing import Callable, NamedTuple

from cluster import Cluster
from systems import WORKERS, System

# As in the chaos run: longest pauses between a recovery and the next fault, and until a worker is started again.
LONGEST_PAUSE = 1.5
LONGEST_AWAY = 0.5
# A fault from which there is no step within so many seconds is not recovered from.
PATIENCE = 120
# Nobody waits for more of these.
MOST_LOST = 5


class Cost(NamedTuple):
    """What a fault cost. Redone steps include the one in flight."""

    seconds: float
    redone: int
    survivors_restarted: bool


def calm(cluster: Cluster, pause: float) -> int | None:
    """The last generation, once all workers have trained in it for so long."""
    if not cluster.steps:
        return None
    generation = max(step.generation for step in cluster.steps)
    together = (step for step in cluster.steps if step.generation == generation and step.world == WORKERS)
    first = min((step.at for step in together), default=None)
    return generation if first is not None and time.time() - first >= pause else None


def strike(cluster: Cluster, chance: random.Random) -> Cost | None:
    """One fault; None if there was no step after it."""
    pause = chance.uniform(0, LONGEST_PAUSE)
    generation = cluster.wait(PATIENCE, lambda: calm(cluster, pause))
    if generation is None:
        return None
    members = {step.pid for step in cluster.steps if step.generation == generation}
    members = sorted(pid for pid in members if cluster.alive(pid))
    victim = chance.choice(members)
    at = time.time()
    cluster.kill(victim, chance.uniform(0, LONGEST_AWAY))

    def recovered():
        return next((step for step in cluster.steps if step.generation > generation), None)

    first = cluster.wait(PATIENCE, recovered)
    if first is None:
        return None
    last = max(step.number for step in cluster.steps if step.generation == generation)
    restarted = not all(cluster.alive(pid) for pid in members if pid != victim)
    return Cost(first.at - at, last - first.number + 2, restarted)


def measure(system: Callable[[], System], faults: int, folder: pathlib.Path, seed: int) -> dict:
    """So many faults; the run is begun anew after one that was not recovered from, and given up after too many of these."""
    chance = random.Random(seed)
    costs: list[Cost] = []
    lost = 0
    loads = [os.getloadavg()[0]]
    lengths: list[float] = []
    while len(costs) + lost < faults and lost < MOST_LOST:
        cluster = Cluster(system(), folder / f"run-{lost}")
        try:
            while len(costs) + lost < faults:
                cost = strike(cluster, chance)
                if cost is None:
                    lost += 1
                    break
                costs.append(cost)
                loads.append(os.getloadavg()[0])
                print(f"  {cost.seconds:.2f} s, {cost.redone} redone", flush=True)
        finally:
            cluster.stop()
        lengths += step_lengths(cluster)
    return {
        "faults": len(costs) + lost,
        "recovered": len(costs),
        "recovery_s": spread([cost.seconds for cost in costs]),
        "redone_steps_max": max((cost.redone for cost in costs), default=None),
        "survivors_restarted": any(cost.survivors_restarted for cost in costs) if costs else None,
        "step_s_median": spread(lengths)["median"],
        "load_average": spread(loads),
        "costs": [cost._asdict() for cost in costs],
    }


def step_lengths(cluster: Cluster) -> list[float]:
    """From one step to the next of the same process in the same generation of all three workers."""
    lengths = []
    last: dict[int, tuple[int, float]] = {}
    for step in cluster.steps:
        before = last.get(step.pid)
        if step.world == WORKERS and before and before[0] == step.generation:
            lengths.append(step.at - before[1])
        last[step.pid] = (step.generation, step.at)
    return lengths


def spread(values: list[float]) -> dict:
    """Median (the lower of two) and maximum, as the chaos run has them."""
    ordered = sorted(values)
    return {"median": ordered[(len(ordered) - 1) // 2], "max": ordered[-1]} if ordered else {"median": None, "max": None}
