"""Measures ours beside its peers, in turn, and writes what came of it after each comparison.

The exit status says whether all was measured, not whether the bounds were met: 1 where a command failed.
"""

import argparse
import functools
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable

import machine
import overhead
import summary
from comparisons import Comparison, Setting, comparisons, unmeasurable
from processes import Failed, output, printed_object, python

PROGRAMS = os.environ.get("PROGRAMS", "target/release")
PARITY_VENV = os.environ.get("PARITY_VENV", "target/parity/venv")


def compared(name: str, comparison: Comparison, rounds: int) -> tuple[dict, str]:
    """Runs all sides, one after the other, round after round. Returns what came of it, and a line about it."""
    if comparison.preparation:
        output(comparison.preparation, comparison.threads)
    runs = {side: [] for side in comparison.sides}
    for number in range(1, rounds + 1):
        for side, command in comparison.sides.items():
            run = printed_object(output(command, comparison.threads))
            value = summary.number(run, comparison.measure.field)
            print(f"  {name}, {number} of {rounds}, {side}: {value:.6g}", file=sys.stderr, flush=True)
            runs[side].append(run)
    result = summary.compared(comparison, runs)
    return result, summary.line(name, comparison, result)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="this comparison, as the summary calls it; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side, in turn (3)")
    parser.add_argument("--steps", type=int, help="steps that each process times (5; 30 on a GPU)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--out", type=pathlib.Path, default="runs/bench/summary.json", metavar="FILE")
    found = parser.parse_args()
    found.steps = found.steps if found.steps is not None else 5 if found.device == "cpu" else 30
    if min(found.rounds, found.steps) < 1:
        parser.error("--rounds and --steps are at least 1")
    return found


def main() -> int:
    chosen = arguments()
    peers = python(f"{PARITY_VENV}/bin/python", os.environ.get("LD_LIBRARY_PATH", ""))
    setting = Setting(f"{PROGRAMS}/worker", peers, chosen.device, chosen.steps)
    measurements: dict[str, Callable[[], tuple[dict, str]]] = {
        name: functools.partial(compared, name, comparison, chosen.rounds)
        for name, comparison in comparisons(setting).items()
    }
    measurements["coordinator_overhead"] = functools.partial(overhead.measured, f"{PROGRAMS}/coordinator", setting.worker)
    if unknown := set(chosen.only or ()) - measurements.keys():
        sys.exit(f"tests/bench/run: error: unknown name `{min(unknown)}`: it is one of {', '.join(measurements)}")
    # Whoever ends this program ends what it started, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        results = machine.described(setting) | {"rounds": chosen.rounds}
    except Failed as failed:
        sys.exit(f"tests/bench/run: error: {failed}")

    instructions = results["device"]["instructions"]
    reasons = {name: unmeasurable(name, setting, instructions) for name in measurements}
    results |= {name: summary.missing(reason or "it was not measured") for name, reason in reasons.items()}
    failures, started = 0, time.monotonic()
    print(summary.HEADING, flush=True)
    for name in measurements:
        if chosen.only and name not in chosen.only:
            continue
        if reasons[name]:
            print(f"{name:22}{reasons[name]}", flush=True)
            continue
        try:
            results[name], line = measurements[name]()
        except Failed as failed:
            failures += 1
            results[name] = summary.missing(str(failed))
            line = f"{name:22}FAILED: {failed}"
        print(line, flush=True)
        results["minutes"] = round((time.monotonic() - started) / 60, 1)
        summary.write(chosen.out, results)
    print(f"\nall of it: {chosen.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
