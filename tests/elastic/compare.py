"""Kills a worker 20 times in each system, and compares the recovery with that of dico's chaos run.

Writes OUT/summary.json and prints a table.

usage: compare.py OUT [SYSTEM...]
"""

import json
import pathlib
import shutil
import signal
import sys
from importlib.metadata import version

from faults import measure
from systems import SYSTEMS, WORKERS

FAULTS = 20
SEED = 1


def dico_summary(out: pathlib.Path) -> dict | None:
    """Returns the summary of the chaos run; None if there is none."""
    path = out / "dico/summary.json"
    if not path.exists():
        return None
    # The chaos run ends only after it has recovered from all faults.
    summary = json.loads(path.read_text())
    summary["recovered"] = summary["faults"]
    # Each worker joins once at the start, and once after each time that it was killed.
    summary["survivors_restarted"] = summary["joins"] > WORKERS + summary["faults"]
    return summary


def row(name: str, result: dict) -> str:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    restarted = {True: "yes", False: "no"}.get(result.get("survivors_restarted"), "")
    recovery = result["recovery_s"]
    cells = [name, result["faults"], result["recovered"], number(recovery["median"]), number(recovery["max"])]
    cells += ["" if result["redone_steps_max"] is None else result["redone_steps_max"], restarted]
    return f"| {' | '.join(map(str, cells))} |"


def write(path: pathlib.Path, results: dict) -> None:
    versions = {package: version(package) for package in ("torch", "torchft")}
    path.write_text(json.dumps({"versions": versions, "systems": results}, indent=2) + "\n")


def main() -> None:
    out = pathlib.Path(sys.argv[1])
    names = sys.argv[2:] or list(SYSTEMS)
    unknown = [name for name in names if name not in SYSTEMS]
    if unknown:
        sys.exit(f"compare.py: error: unknown system `{unknown[0]}`: the systems are {', '.join(SYSTEMS)}")
    # A signal that ends this program also ends the processes that it started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    path = out / "summary.json"
    previous = json.loads(path.read_text())["systems"] if path.exists() else {}
    results = {name: result for name, result in previous.items() if name in SYSTEMS}
    if dico_result := dico_summary(out):
        results["dico"] = dico_result
    for name in names:
        print(f"== {name}", flush=True)
        folder = out / name.replace(",", "").replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        results[name] = measure(SYSTEMS[name], FAULTS, folder.resolve(), SEED)
        write(path, results)
    print()
    print("| | faults | recovered | median, s | max, s | steps redone, max | survivors restarted |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name in ["dico", *SYSTEMS]:
        if name in results:
            print(row(name, results[name]))


if __name__ == "__main__":
    main()
