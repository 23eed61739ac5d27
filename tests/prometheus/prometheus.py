"""Runs Prometheus with the deployed configuration on loopback, and sends queries to it."""

import json
import math
import pathlib
import socket
import time
import urllib.parse

import yaml

from deployed import PROMETHEUS
from processes import CheckError, Processes, get, wait_for

# Upper limit of the alerts' `for`, short enough to see alerts pending and firing in the test.
MAX_FOR = "5s"
# Seconds between the points of a range query; the deployed scrape interval.
STEP = 5


class Prometheus:
    """A Prometheus that scrapes `targets` with the deployed configuration and rules.

    Only paths, targets and the alerts' `for` differ.
    """

    def __init__(self, processes: Processes, targets: list[str]) -> None:
        folder = processes.folder
        self.started = time.time()
        config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        config["rule_files"] = [self.shorten_alerts(PROMETHEUS / name, folder) for name in config["rule_files"]]
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}"
        options = {
            "config.file": folder / "prometheus.yaml", "storage.tsdb.path": folder / "tsdb", "web.listen-address": address,
        }
        processes.start("prometheus", ["prometheus", *(f"--{option}={value}" for option, value in options.items())])
        wait_for("Prometheus", lambda: get(f"{self.url}/-/ready"))

    @staticmethod
    def shorten_alerts(path: pathlib.Path, folder: pathlib.Path) -> str:
        """Copies a rule file with a shorter `for` of its alerts. Returns the path of the copy."""
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                if rule.get("for", "0s") != "0s":
                    rule["for"] = MAX_FOR
        copy = folder / path.name
        copy.write_text(yaml.safe_dump(rules))
        return str(copy)

    def request(self, path: str, **parameters: object) -> object:
        response = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        if response is None:
            raise CheckError("Prometheus does not respond any more")
        return json.loads(response)["data"]

    def series(self, expr: str) -> list[dict]:
        """Returns all series of an expression since the start that have a number."""
        span = {"start": self.started, "end": time.time(), "step": STEP}
        series = self.request("query_range", query=expr, **span)["result"]
        return [entry for entry in series if any(not math.isnan(float(value)) for _, value in entry["values"])]

    def value(self, expr: str) -> float | None:
        """Returns the value of the only series; None if there is none."""
        series = self.request("query", query=expr)["result"]
        return float(series[0]["value"][1]) if series else None

    def alert(self, name: str, **labels: str) -> str | None:
        """Returns the alert's state, `pending` or `firing`; None if it is inactive."""
        alert_labels = {"alertname": name, **labels}.items()
        states = [alert["state"] for alert in self.request("alerts")["alerts"] if alert_labels <= alert["labels"].items()]
        return states[0] if states else None
