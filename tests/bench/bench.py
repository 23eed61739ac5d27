"""Measures this project and its peers alternately, and writes the results after each comparison.

The exit status is 1 if a command failed. Bounds that are not met do not change the exit status.
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
from comparisons import Comparison, Setting, comparisons, reason_not_measured
from processes import CommandError, parse_json_object, python_command, run_command

PROGRAMS = os.environ.get("PROGRAMS", "target/release")
PARITY_VENV = os.environ.get("PARITY_VENV", "target/parity/venv")


def run_comparison(name: str, comparison: Comparison, rounds: int) -> tuple[dict, str]:
    """Runs all sides alternately, `rounds` times. Returns the result and its line of the table."""
    if comparison.preparation:
        run_command(comparison.preparation, comparison.threads)
    runs = {side: [] for side in comparison.sides}
    for number in range(1, rounds + 1):
        for side, command in comparison.sides.items():
            run = parse_json_object(run_command(command, comparison.threads))
            value = summary.positive_number(run, comparison.measure.field)
            print(f"  {name}, {number} of {rounds}, {side}: {value:.6g}", file=sys.stderr, flush=True)
            runs[side].append(run)
    result = summary.compare(comparison, runs)
    return result, summary.table_line(name, comparison, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="name of a comparison to run, as in the summary; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side; the sides alternate (3)")
    parser.add_argument("--steps", type=int, help="steps that each process times (5 on a CPU, 30 on a GPU)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--out", type=pathlib.Path, default="runs/bench/summary.json", metavar="FILE")
    parsed = parser.parse_args()
    parsed.steps = parsed.steps if parsed.steps is not None else 5 if parsed.device == "cpu" else 30
    if min(parsed.rounds, parsed.steps) < 1:
        parser.error("--rounds and --steps must be at least 1")
    return parsed


def main() -> int:
    options = parse_arguments()
    peers = python_command(f"{PARITY_VENV}/bin/python", os.environ.get("LD_LIBRARY_PATH", ""))
    setting = Setting(f"{PROGRAMS}/worker", peers, options.device, options.steps)
    measurements: dict[str, Callable[[], tuple[dict, str]]] = {
        name: functools.partial(run_comparison, name, comparison, options.rounds)
        for name, comparison in comparisons(setting).items()
    }
    measurements["coordinator_overhead"] = functools.partial(overhead.measure, f"{PROGRAMS}/coordinator", setting.worker)
    if unknown := set(options.only or ()) - measurements.keys():
        sys.exit(f"tests/bench/run: error: unknown comparison `{min(unknown)}`: the names are {', '.join(measurements)}")
    # A signal that ends this program also ends the processes that it started.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        results = machine.describe(setting) | {"rounds": options.rounds}
    except CommandError as error:
        sys.exit(f"tests/bench/run: error: {error}")

    instructions = results["device"]["instructions"]
    reasons = {name: reason_not_measured(name, setting, instructions) for name in measurements}
    results |= {name: summary.missing_result(reason or "it was not measured") for name, reason in reasons.items()}
    failures, started = 0, time.monotonic()
    print(summary.HEADING, flush=True)
    for name in measurements:
        if options.only and name not in options.only:
            continue
        if reasons[name]:
            print(f"{name:22}{reasons[name]}", flush=True)
            continue
        try:
            results[name], line = measurements[name]()
        except CommandError as error:
            failures += 1
            results[name] = summary.missing_result(str(error))
            line = f"{name:22}FAILED: {error}"
        print(line, flush=True)
        results["minutes"] = round((time.monotonic() - started) / 60, 1)
        summary.write(options.out, results)
    print(f"\nall results: {options.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
