"""Reads the Prometheus and Grafana configuration in deploy/, and all its expressions."""

import json
import pathlib
from typing import NamedTuple

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
GRAFANA = ROOT / "deploy/grafana"


class Expression(NamedTuple):
    """A query, its location, and its legend."""

    where: str
    expr: str
    legend: str = ""


def read_rule_file(name: str) -> dict:
    return yaml.safe_load((PROMETHEUS / name).read_text())


def rules(name: str) -> list[dict]:
    return [rule for group in read_rule_file(name)["groups"] for rule in group["rules"]]


def recorded() -> list[Expression]:
    return [Expression(f"rule {rule['record']}", rule["expr"]) for rule in rules("rules.yaml")]


def alerts() -> list[Expression]:
    return [Expression(f"alert {rule['alert']}", rule["expr"]) for rule in rules("alerts.yaml")]


def dashboards() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}


def panels() -> list[Expression]:
    """Returns the queries of all panels and annotations."""
    expressions = []
    for name, dashboard in dashboards().items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", []):
                where = f"{name}, panel {panel['title']}, query {target['refId']}"
                expressions.append(Expression(where, target["expr"], target["legendFormat"]))
        for note in dashboard["annotations"]["list"]:
            expressions.append(Expression(f"{name}, annotation {note['name']}", note["expr"]))
    return expressions
