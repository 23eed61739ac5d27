"""Expressions taken apart."""

import re
from typing import Iterator

import promql_parser as promql

COMPARISONS = {"==", "!=", "<", "<=", ">", ">="}
SETS = {"and", "or", "unless"}
HISTOGRAM = re.compile(r"_(bucket|sum|count)$")


def without_variables(expr: str, instance: str, seconds: int) -> str:
    """A panel's query as Grafana asks it: of this coordinator, over so many seconds."""
    # Four scrapes, as the data source's timeInterval has it.
    values = {"$__rate_interval": "20s", "$__range": f"{seconds}s", "$instance": instance}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return expr


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
        yield now(str(node))


def now(expr: str) -> str:
    """Without `offset`: a test does not have the past that it asks for."""
    return re.sub(r" offset \S+", "", expr)


def metric(selector: promql.VectorSelector, histograms: set[str]) -> str:
    """Under which name what is selected is exposed."""
    family = HISTOGRAM.sub("", selector.name)
    return family if family in histograms else selector.name
