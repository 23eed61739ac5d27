"""What the numbers of all rounds come to, and where it is kept."""

import json
import math
import os
import pathlib
import statistics

from comparisons import Comparison, Measure
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
    medians = {side: statistics.median(number(run, measure.field) for run in of) for side, of in runs.items()}
    ours = medians["ours"]
    ratios = {side: measure.ratio(ours, value) for side, value in medians.items() if side != "ours"}
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


HEADING = f"{'':16}{'ours':>12}{'peer or base':>14}  {'':16}{'ratio':>7}  bound"


def short(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def line(name: str, comparison: Comparison, result: dict) -> str:
    """A line of the table."""
    measure: Measure = comparison.measure
    ours, other = result["ours"], result[comparison.other]
    scale, unit = (2**20, "MiB") if measure.unit == "bytes" else (1, measure.unit)
    cells = f"{name:16}{short(ours / scale):>12}{short(other / scale):>14}  {unit:16}{result['ratio']:7.2f}"
    details = [f"{key} {result[key]:.3g}" for key in result if key.startswith("ratio_") or key in comparison.further]
    return "  ".join([cells, verdict(result, below=measure.below), *details])


def verdict(result: dict, below: bool) -> str:
    return f"{'below' if below else 'at least'} {result['bound']:g}: {'met' if result['met'] else 'not met'}"


def write(path: pathlib.Path, summary: dict) -> None:
    """Whoever reads it finds the whole of it, or that of before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(beside, path)
