"""Parses PromQL expressions."""

import re
from typing import Iterator

import promql_parser as promql

COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
SETS = {"and", "or", "unless"}
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def substitute_variables(instance: str, expr: str) -> str:
    """Substitutes Grafana's variables in a panel's query."""
    # Grafana's default is four scrape intervals; the data source sets 5 s (timeInterval).
    return expr.replace("$__rate_interval", "20s").replace("$instance", instance)


def selectors(node: promql.Expr) -> Iterator[promql.VectorSelector]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "args"):
        children = getattr(node, name, None)
        for child in children if isinstance(children, list) else [children]:
            if child is not None:
                yield from selectors(child)


def operands(node: promql.Expr) -> Iterator[str]:
    """Yields the operands of an alert's comparisons, which have data even without an alert."""
    while isinstance(node, promql.ParenExpr):
        node = node.expr
    if isinstance(node, promql.BinaryExpr) and str(node.op) in COMPARISONS | SETS:
        yield from operands(node.lhs)
        yield from operands(node.rhs)
    elif not isinstance(node, promql.NumberLiteral):
        yield str(node)


def grouping(expr: str) -> set[str]:
    """Returns the labels of aggregations and of vector matching."""
    lists = re.findall(r"\b(?:on|ignoring|by|without|group_left|group_right) \(([^)]*)\)", expr)
    return {label for labels in lists for label in labels.split(", ") if label}


def metric(selector: promql.VectorSelector, histograms: set[str]) -> str:
    """Returns the name of the exposed metric family that a selector matches."""
    family = HISTOGRAM.sub("", selector.name)
    return family if family in histograms else selector.name
