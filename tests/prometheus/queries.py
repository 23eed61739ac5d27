"""Checks that all deployed queries find data of a run that Prometheus has scraped."""

import re
from typing import Iterator

import promql_parser as promql

import deployed
from prometheus import Prometheus
from promql import substitute_variables, grouping, metric, operands, selectors
from watched_run import WatchedRun

# Metrics that no panel and no rule uses -> why.
UNUSED: dict[str, str] = {}
# Metrics and labels of Prometheus itself.
PROMETHEUS_METRICS = {"up", "ALERTS"}
PROMETHEUS_LABELS = {"job", "instance"}


def without_data(watched_run: WatchedRun) -> Iterator[str]:
    """Yields deployed queries that find no data."""
    prometheus = watched_run.prometheus
    for where, expr, legend in [*deployed.panels(), *deployed.recorded()]:
        expr = substitute_variables(watched_run.run.http, expr)
        series = prometheus.series(expr)
        if not series:
            yield f"{where}: no data: {expr}"
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            if any(label not in entry["metric"] for entry in series):
                yield f"{where}: its legend shows {label}, which is not a label of {expr}"
        yield from empty_selectors(prometheus, where, expr)
    for where, expr, _ in deployed.alerts():
        for operand in operands(promql.parse(expr)):
            if not prometheus.series(operand):
                yield f"{where}: no data: {operand}"
        yield from empty_selectors(prometheus, where, expr)
    for name, dashboard in deployed.dashboards().items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield from empty_variable(prometheus, f"{name}, variable {variable['name']}", variable["query"]["query"])


def empty_selectors(prometheus: Prometheus, where: str, expr: str) -> Iterator[str]:
    """Yields the selectors of an expression that match no series."""
    for selector in selectors(promql.parse(expr)):
        if not prometheus.series(str(selector)):
            yield f"{where}: {selector} matches no series"


def empty_variable(prometheus: Prometheus, where: str, query: str) -> Iterator[str]:
    selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()
    series = prometheus.series(selector.replace("$run", "watched"))
    if not series or any(label not in entry["metric"] for entry in series):
        yield f"{where}: no values: {query}"


def unknown_names(watched_run: WatchedRun) -> Iterator[str]:
    """Yields names in queries that are not exposed, and exposed metrics that no query uses."""
    exposed = dict(re.findall(r"^# TYPE (\S+) (\S+)$", watched_run.exposition, re.MULTILINE))
    labels = set(re.findall(r'[{,](\w+)="', watched_run.exposition)) | PROMETHEUS_LABELS
    histograms = {name for name, kind in exposed.items() if kind == "histogram"}
    recorded = {rule["record"] for rule in deployed.rules("rules.yaml")}
    used = set()
    for where, expr, _ in [*deployed.panels(), *deployed.recorded(), *deployed.alerts()]:
        expr = substitute_variables(watched_run.run.http, expr)
        names = {metric(selector, histograms) for selector in selectors(promql.parse(expr))}
        used |= names
        for name in sorted(names - exposed.keys() - recorded - PROMETHEUS_METRICS):
            yield f"{where}: the metric {name} is not exposed"
        for label in sorted(grouping(expr) - labels):
            yield f"{where}: the label {label} is not exposed"
    for name in sorted(exposed.keys() - used - UNUSED.keys()):
        yield f"{name} is exposed, but no panel and no rule uses it: use it, or add it to UNUSED with the reason"
    for name in sorted(UNUSED.keys() & used | UNUSED.keys() - exposed.keys()):
        yield f"UNUSED names {name}, which is used or not exposed"
    for name in sorted(recorded - used):
        yield f"rule {name}: no panel and no rule uses it"
