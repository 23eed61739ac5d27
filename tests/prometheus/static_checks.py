"""Checks deploy/prometheus and deploy/grafana without a run."""

import re
import subprocess
import sys
from typing import Iterator

import yaml

import deployed
from deployed import GRAFANA, PROMETHEUS, ROOT


def promtool() -> Iterator[str]:
    tests = sorted((PROMETHEUS / "tests").glob("*.yaml"))
    for command in (["check", "config", PROMETHEUS / "prometheus.yaml"], ["test", "rules", *tests]):
        result = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            yield f"promtool {command[0]} {command[1]}: {result.stdout}{result.stderr}"


def unit_tests() -> Iterator[str]:
    """Checks that unit tests cover each alert, firing and not firing, and each recording rule."""
    tests = [test for path in (PROMETHEUS / "tests").glob("*.yaml") for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for rule in deployed.rules("alerts.yaml"):
        outcomes = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]}
        if outcomes != {True, False}:
            yield f"alert {rule['alert']}: its unit tests must cover firing and not firing"
    queries = "\n".join(str(case) for test in tests for case in test.get("promql_expr_test", []))
    for rule in deployed.rules("rules.yaml"):
        if not re.search(rf"{rule['record']}\b", queries):
            yield f"rule {rule['record']}: no unit test queries it"


def alerts() -> Iterator[str]:
    """Checks that each alert has a severity, `for`, texts, and a section of the run book."""
    headings = re.findall(r"^### (.+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    for rule in deployed.rules("alerts.yaml"):
        name, notes = rule["alert"], rule.get("annotations", {})
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            yield f"alert {name}: its severity must be critical or warning"
        if "for" not in rule or not {"summary", "description"} <= notes.keys():
            yield f"alert {name}: `for`, a summary or a description is missing"
        if notes.get("runbook") != f"docs/operations.md#{name.lower()}" or name not in headings:
            yield f"alert {name}: docs/operations.md has no heading `### {name}`, or `runbook` does not link to it"


def dashboards() -> Iterator[str]:
    source = [sys.executable, str(GRAFANA / "source"), "--check"]
    result = subprocess.run(source, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        yield result.stderr.strip()
    dashboards_by_name = deployed.dashboards()
    for duplicate in duplicates([dashboard["uid"] for dashboard in dashboards_by_name.values()]):
        yield f"dashboards: uid {duplicate} is used twice"
    for name, dashboard in dashboards_by_name.items():
        for problem in check_structure(dashboard):
            yield f"dashboard {name}: {problem}"


def check_structure(dashboard: dict) -> Iterator[str]:
    panels = dashboard["panels"]
    for duplicate in duplicates([panel["id"] for panel in panels]):
        yield f"panel id {duplicate} is used twice"
    taken = set()
    for panel in panels:
        position, title = panel["gridPos"], panel["title"]
        cells = {(x, y) for x in range(position["x"], position["x"] + position["w"]) for y in range(position["y"], position["y"] + position["h"])}
        if position["x"] + position["w"] > 24 or cells & taken:
            yield f"panel {title} is outside the grid or overlaps another panel"
        taken |= cells
        if panel["type"] == "row":
            continue
        if not (title and panel.get("description") and panel.get("targets")):
            yield f"panel {title} needs a title, a description and queries"
        if panel["type"] in ("stat", "timeseries") and not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"panel {title} has no unit"
        targets = panel.get("targets", [])
        for duplicate in duplicates([target["refId"] for target in targets]):
            yield f"panel {title}: query {duplicate} is used twice"
        for item in [panel, *targets]:
            if item["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"panel {title} does not use the selected data source"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", str(dashboard))) - {"__rate_interval"}
    if variables != {"datasource", "run", "instance"} or not used <= variables:
        yield f"variables are {sorted(variables)}, and {sorted(used)} are used"
    if not dashboard.get("schemaVersion"):
        yield "schemaVersion is missing"


def duplicates(values: list) -> set:
    return {value for value in values if values.count(value) > 1}


def problems() -> list[str]:
    return [problem for check in (promtool, unit_tests, alerts, dashboards) for problem in check()]
