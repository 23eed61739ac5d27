"""Kills a worker 20 times in each system, and writes OUT/summary.json and a table of it beside dico's chaos run.

usage: compare.py OUT [SYSTEM...]
"""

import contextlib
import json
import pathlib
import shutil
import signal
import sqlite3
import sys
from importlib.metadata import version

from faults import measure
from systems import SYSTEMS, WORKERS

FAULTS = 20
SEED = 1


def dico(out: pathlib.Path) -> dict | None:
    """The chaos run's summary, if there is one."""
    path = out / "dico/summary.json"
    if not path.exists():
        return None
    # A run that ends has recovered from all of its faults.
    summary = json.loads(path.read_text())
    summary["recovered"] = summary["faults"]
    journal = out / "dico/chaos/coordinator/journal.sqlite"
    with contextlib.closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as connection:
        (joined,) = connection.execute("SELECT count(*) FROM events WHERE kind = 'joined'").fetchone()
    # Each worker joins once at first, and once after it was killed.
    summary["survivors_restarted"] = joined > WORKERS + summary["faults"]
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
        sys.exit(f"compare.py: error: unknown system `{unknown[0]}`: it is one of {', '.join(SYSTEMS)}")
    # Whoever ends this program ends what it started, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    path = out / "summary.json"
    before = json.loads(path.read_text())["systems"] if path.exists() else {}
    results = {name: result for name, result in before.items() if name in SYSTEMS}
    if ours := dico(out):
        results["dico"] = ours
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
