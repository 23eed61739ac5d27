"""Expressions taken apart."""

import re
from typing import Iterator

import promql_parser as promql

COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
SETS = {"and", "or", "unless"}
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def asked_of(instance: str, expr: str) -> str:
    """A panel's query as Grafana puts it."""
    # Four scrapes, as the data source's timeInterval has it.
    return expr.replace("$__rate_interval", "20s").replace("$instance", instance)


def selectors(node: promql.Expr) -> Iterator[promql.VectorSelector]:
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "args"):
        below = getattr(node, name, None)
        for child in below if isinstance(below, list) else [below]:
            if child is not None:
                yield from selectors(child)


def operands(node: promql.Expr) -> Iterator[str]:
    """What an alert compares: it is data even while the alert is quiet."""
    while isinstance(node, promql.ParenExpr):
        node = node.expr
    if isinstance(node, promql.BinaryExpr) and str(node.op) in COMPARISONS | SETS:
        yield from operands(node.lhs)
        yield from operands(node.rhs)
    elif not isinstance(node, promql.NumberLiteral):
        yield str(node)


def grouping(expr: str) -> set[str]:
    """The labels by which series are put together."""
    lists = re.findall(r"\b(?:on|ignoring|by|without|group_left|group_right) \(([^)]*)\)", expr)
    return {label for labels in lists for label in labels.split(", ") if label}


def metric(selector: promql.VectorSelector, histograms: set[str]) -> str:
    """Under which name what is selected is exposed."""
    family = HISTOGRAM.sub("", selector.name)
    return family if family in histograms else selector.name
