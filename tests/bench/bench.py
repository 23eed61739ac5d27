"""Measures ours beside its peers, in turn, and writes what came of it after each comparison.

The exit status says whether all was measured, not whether the bounds were met: 1 where a command failed.
"""

import argparse
import os
import pathlib
import signal
import sys

import machine
import overhead
import summary
from comparisons import Comparison, Setting, comparisons, unmeasurable
from processes import Failed, output, printed_object

ROOT = pathlib.Path(__file__).resolve().parents[2]
OVERHEAD = "coordinator_overhead"


def measured(name: str, comparison: Comparison, rounds: int) -> dict:
    """What its sides print, one after the other, round after round."""
    if comparison.preparation:
        output(comparison.preparation, comparison.threads)
    runs = {side: [] for side in comparison.sides}
    for number in range(1, rounds + 1):
        for side, command in comparison.sides.items():
            run = printed_object(output(command, comparison.threads))
            value = summary.number(run, comparison.measure.field)
            print(f"  {name}, {number} of {rounds}, {side}: {value:.6g}", file=sys.stderr, flush=True)
            runs[side].append(run)
    return summary.compared(comparison, runs)


def arguments(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/bench/run", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each side, in turn (3)")
    parser.add_argument("--steps", type=int, help="steps that each process times (5; 30 on a GPU)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "runs/bench/summary.json", metavar="FILE")
    found = parser.parse_args()
    if found.rounds < 1 or (found.steps is not None and found.steps < 1):
        parser.error("--rounds and --steps are at least 1")
    return found


def main() -> int:
    programs = os.environ.get("PROGRAMS", "target/release")
    python = f"{os.environ.get('PARITY_VENV', 'target/parity/venv')}/bin/python"
    setting = Setting(worker=f"{programs}/worker", python=python)
    names = [*comparisons(setting), OVERHEAD]
    chosen = arguments(names)
    setting = Setting(setting.worker, python, chosen.device, chosen.steps or (5 if chosen.device == "cpu" else 30))
    # Whoever ends this program ends what it started, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.chdir(ROOT)
    try:
        results = machine.described(setting.worker, python, chosen.device)
    except Failed as failed:
        sys.exit(f"tests/bench/run: error: {failed}")
    results |= {"rounds": chosen.rounds} | {name: summary.missing("it was not come to") for name in names}
    failures = 0
    print(summary.HEADING)
    for name, comparison in (comparisons(setting) | {OVERHEAD: None}).items():
        reason = unmeasurable(name, setting, results["device"]["instructions"])
        if chosen.only and name not in chosen.only:
            reason = "it was not asked for"
        try:
            if reason:
                results[name] = summary.missing(reason)
                said = f"{name:24}{reason}"
            elif comparison is None:
                results[name] = overhead.measured(f"{programs}/coordinator", setting.worker)
                said = overhead.line(name, results[name])
            else:
                results[name] = measured(name, comparison, chosen.rounds)
                said = summary.line(name, comparison, results[name])
        except Failed as failed:
            failures += 1
            results[name] = summary.missing(str(failed))
            said = f"{name:24}FAILED: {failed}"
        summary.write(chosen.out, results)
        print(said, flush=True)
    print(f"\n{chosen.out}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
