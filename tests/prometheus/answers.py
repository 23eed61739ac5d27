"""Whether all that is deployed finds what it asks for in a run that Prometheus has watched."""

import re
from typing import Iterator

import promql_parser as promql

import deployed
from prometheus import Prometheus
from promql import asked_of, grouping, metric, operands, selectors
from story import Story

# Metrics that are in no panel and no rule, and why.
UNUSED: dict[str, str] = {}
# What is Prometheus' own.
OWN = {"up", "ALERTS"}
OWN_LABELS = {"job", "instance"}


def unanswered(story: Story) -> Iterator[str]:
    """Queries without an answer."""
    prometheus = story.prometheus
    for where, expr, legend in [*deployed.panels(), *deployed.recorded()]:
        expr = asked_of(story.run.http, expr)
        series = prometheus.course(expr)
        if not series:
            yield f"{where}: no data: {expr}"
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            if any(label not in one["metric"] for one in series):
                yield f"{where}: its legend shows {label}, which is no label of {expr}"
        yield from nothing_selected(prometheus, where, expr)
    for where, expr, _ in deployed.alerts():
        for operand in operands(promql.parse(expr)):
            if not prometheus.course(operand):
                yield f"{where}: no data: {operand}"
        yield from nothing_selected(prometheus, where, expr)
    for name, dashboard in deployed.dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield from no_choice(prometheus, f"{name}, variable {variable['name']}", variable["query"]["query"])


def nothing_selected(prometheus: Prometheus, where: str, expr: str) -> Iterator[str]:
    """Selectors that match nothing, on whichever side of whatever."""
    for selector in selectors(promql.parse(expr)):
        if not prometheus.course(str(selector)):
            yield f"{where}: nothing is selected by {selector}"


def no_choice(prometheus: Prometheus, where: str, query: str) -> Iterator[str]:
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    series = prometheus.course(selector.replace("$run", "watched"))
    if not series or any(label not in one["metric"] for one in series):
        yield f"{where}: no values: {query}"


def unknown(story: Story) -> Iterator[str]:
    """Metrics and labels that are asked for but not exposed, and metrics that nobody asks for."""
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", story.exposition, re.MULTILINE))
    labels = set(re.findall(r'[{,](\w+)="', story.exposition)) | OWN_LABELS
    histograms = {name for name, kind in exposed.items() if kind == "histogram"}
    recorded = {rule["record"] for rule in deployed.rules("rules.yaml")}
    used = set()
    for where, expr, _ in [*deployed.panels(), *deployed.recorded(), *deployed.alerts()]:
        expr = asked_of(story.run.http, expr)
        names = {metric(selector, histograms) for selector in selectors(promql.parse(expr))}
        used |= names
        for name in sorted(names - exposed.keys() - recorded - OWN):
            yield f"{where}: nobody exposes {name}"
        for label in sorted(grouping(expr) - labels):
            yield f"{where}: nobody exposes a label {label}"
    for name in sorted(exposed.keys() - used - UNUSED.keys()):
        yield f"{name} is exposed but in no panel and no rule: add it, or say in UNUSED why not"
    for name in sorted(UNUSED.keys() & used | UNUSED.keys() - exposed.keys()):
        yield f"UNUSED names {name}, which is used or not exposed"
    for name in sorted(recorded - used):
        yield f"rule {name} is in no panel and no rule"
