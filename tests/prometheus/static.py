"""What can be said of deploy/prometheus and deploy/grafana without a run."""

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
        done = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            yield f"promtool {command[0]} {command[1]}: {done.stdout}{done.stderr}"


def unit_tests() -> Iterator[str]:
    """Every alert is tested for firing and for being quiet, and every recording rule is asked for."""
    tests = [test for path in (PROMETHEUS / "tests").glob("*.yaml") for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for rule in deployed.rules("alerts.yaml"):
        outcomes = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == rule["alert"]}
        if outcomes != {True, False}:
            yield f"alert {rule['alert']}: its tests do not show both that it fires and that it is quiet"
    asked = "\n".join(str(case) for test in tests for case in test.get("promql_expr_test", []))
    for rule in deployed.rules("rules.yaml"):
        if not re.search(rf"{rule['record']}\b", asked):
            yield f"rule {rule['record']}: no test asks for it"


def alerts() -> Iterator[str]:
    """Every alert says how urgent it is, for how long it waits, and where one reads what to do."""
    headings = re.findall(r"^### (.+)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE)
    for rule in deployed.rules("alerts.yaml"):
        name, notes = rule["alert"], rule.get("annotations", {})
        if rule.get("labels", {}).get("severity") not in ("critical", "warning"):
            yield f"alert {name}: its severity is neither critical nor warning"
        if "for" not in rule or not {"summary", "description"} <= notes.keys():
            yield f"alert {name}: needs `for`, a summary and a description"
        if notes.get("runbook") != f"docs/operations.md#{name.lower()}" or name not in headings:
            yield f"alert {name}: docs/operations.md has no heading `### {name}`, or `runbook` does not lead to it"


def dashboards() -> Iterator[str]:
    source = [sys.executable, str(GRAFANA / "source"), "--check"]
    done = subprocess.run(source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        yield done.stderr.strip()
    found = deployed.dashboards()
    for twice in twins([dashboard["uid"] for dashboard in found.values()]):
        yield f"dashboards: uid {twice} is there twice"
    for name, dashboard in found.items():
        for problem in structure(dashboard):
            yield f"dashboard {name}: {problem}"


def structure(dashboard: dict) -> Iterator[str]:
    panels = dashboard["panels"]
    for twice in twins([panel["id"] for panel in panels]):
        yield f"panel id {twice} is there twice"
    taken = set()
    for panel in panels:
        place, title = panel["gridPos"], panel["title"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        if place["x"] + place["w"] > 24 or cells & taken:
            yield f"panel {title} lies outside of the grid or on another"
        taken |= cells
        if panel["type"] == "row":
            continue
        if not (title and panel.get("description") and panel.get("targets")):
            yield f"panel {title} needs a title, a description and queries"
        if panel["type"] in ("stat", "timeseries") and not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"panel {title} has no unit"
        targets = panel.get("targets", [])
        for twice in twins([target["refId"] for target in targets]):
            yield f"panel {title}: query {twice} is there twice"
        for item in [panel, *targets]:
            if item["datasource"] != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"panel {title} does not ask the data source that is chosen"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", str(dashboard))) - {"__rate_interval"}
    if variables != {"datasource", "run", "instance"} or not used <= variables:
        yield f"variables are {sorted(variables)}, and {sorted(used)} are used"
    if not dashboard.get("schemaVersion"):
        yield "schemaVersion is missing"


def twins(values: list) -> set:
    return {value for value in values if values.count(value) > 1}


def problems() -> list[str]:
    return [problem for check in (promtool, unit_tests, alerts, dashboards) for problem in check()]
