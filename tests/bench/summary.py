"""What the numbers of all rounds come to, and where it is kept."""

import json
import math
import os
import pathlib
import statistics

from comparisons import Comparison
from processes import Failed


def number(run: dict, field: str) -> float:
    """A positive number that was printed."""
    found = run.get(field)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
        raise Failed(f"a positive number was expected as `{field}` where this was printed: {json.dumps(found)}")
    return found


def compared(comparison: Comparison, runs: dict[str, list[dict]]) -> dict:
    """Medians, ratios and bounds. `runs` has what each side printed, in order of rounds."""
    measure = comparison.measure
    printed = {side: statistics.median(number(run, measure.field) for run in of) for side, of in runs.items()}
    medians = {side: value / measure.scale for side, value in printed.items()}
    ratios = {side: printed["ours"] / value for side, value in printed.items() if side != "ours"}
    ratio = ratios.pop(comparison.other)
    further = {name: statistics.median(number(run, name) for run in runs["ours"]) for name in comparison.further}
    met = measure.met(ratio, comparison.bound)
    return {
        "ratio": ratio,
        **medians,
        "unit": measure.unit,
        "bound": comparison.bound,
        "met": met and all(value >= comparison.further[name] for name, value in further.items()),
        **{f"ratio_{side}": value for side, value in ratios.items()},
        **further,
        **{f"bound_{name}": bound for name, bound in comparison.further.items()},
        "commands": {side: " ".join(command) for side, command in comparison.sides.items()},
        "runs": runs,
    }


def missing(reason: str) -> dict:
    """In place of a result."""
    return {"ratio": None, "met": None, "reason": reason}


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def row(name: str, ours: str, other: str, unit: str, ratio: str, bound: str) -> str:
    return f"{name:22}{ours:>10}{other:>10}  {unit:16}{ratio:>7}  {bound}"


HEADING = row("", "ours", "other", "", "ratio", "bound")


def line(name: str, comparison: Comparison, result: dict) -> str:
    """A line of the table."""
    measure = comparison.measure
    ours, other = (short(result[side]) for side in ("ours", comparison.other))
    details = [f"{key} {result[key]:.3g}" for key in result if key.startswith("ratio_") or key in comparison.further]
    bound = ", ".join([bounded("below" if measure.below else "at least", result), *details])
    return row(name, ours, other, measure.unit, f"{result['ratio']:.2f}", bound)


def line_of_overhead(result: dict) -> str:
    return row("coordinator_overhead", short(result["ms"]), "", result["unit"], "", bounded("below", result))


def bounded(how: str, result: dict) -> str:
    return f"{how} {result['bound']:g}: {'met' if result['met'] else 'not met'}"


def write(path: pathlib.Path, summary: dict) -> None:
    """Whoever reads it finds the whole of it, or that of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(beside, path)
