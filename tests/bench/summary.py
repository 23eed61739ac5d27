"""Computes medians and ratios over all rounds, formats the table, and writes the summary."""

import json
import math
import os
import pathlib
import statistics

from comparisons import Comparison
from processes import CommandError


def positive_number(run: dict, field: str) -> float:
    """Returns a field of a printed object. Raises CommandError if it is no positive number."""
    value = run.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise CommandError(f"expected a positive number as `{field}`, but the command printed: {json.dumps(value)}")
    return value


def compare(comparison: Comparison, runs: dict[str, list[dict]]) -> dict:
    """Returns medians, ratios and bounds. `runs`: the printed objects of each side, by round."""
    measure = comparison.measure
    raw_medians = {side: statistics.median(positive_number(run, measure.field) for run in results) for side, results in runs.items()}
    medians = {side: value / measure.scale for side, value in raw_medians.items()}
    ratios = {side: raw_medians["ours"] / value for side, value in raw_medians.items() if side != "ours"}
    ratio = ratios.pop(comparison.other)
    further = {name: statistics.median(positive_number(run, name) for run in runs["ours"]) for name in comparison.further}
    met = measure.is_met(ratio, comparison.bound)
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


def missing_result(reason: str) -> dict:
    """Returns the entry of a comparison without a result."""
    return {"ratio": None, "met": None, "reason": reason}


def format_number(value: float) -> str:
    """Formats a number with three significant digits, or as an integer from 100."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def row(name: str, ours: str, other: str, unit: str, ratio: str, bound: str) -> str:
    return f"{name:22}{ours:>10}{other:>10}  {unit:16}{ratio:>7}  {bound}"


HEADING = row("", "ours", "other", "", "ratio", "bound")


def table_line(name: str, comparison: Comparison, result: dict) -> str:
    """Returns a comparison's line of the table."""
    measure = comparison.measure
    ours, other = (format_number(result[side]) for side in ("ours", comparison.other))
    details = [f"{key} {result[key]:.3g}" for key in result if key.startswith("ratio_") or key in comparison.further]
    bound = ", ".join([bound_text("below" if measure.is_upper_bound else "at least", result), *details])
    return row(name, ours, other, measure.unit, f"{result['ratio']:.2f}", bound)


def overhead_line(result: dict) -> str:
    return row("coordinator_overhead", format_number(result["ms"]), "", result["unit"], "", bound_text("below", result))


def bound_text(kind: str, result: dict) -> str:
    return f"{kind} {result['bound']:g}: {'met' if result['met'] else 'not met'}"


def write(path: pathlib.Path, summary: dict) -> None:
    """Replaces the file atomically, so that readers see the old or the new content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.part")
    temporary.write_text(json.dumps(summary, indent=2) + "\n")
    os.replace(temporary, path)
