"""The deployed Prometheus on loopback, and what it says."""

import json
import math
import pathlib
import socket
import time
import urllib.parse

import yaml

from deployed import PROMETHEUS
from processes import Failure, Processes, get, wait_for

# How long an alert of the test waits at most: two evaluations show it pending and firing.
MOST_FOR = "5s"
# Seconds between the points of a query: as the deployed one scrapes.
STEP = 5


class Prometheus:
    """Scrapes `targets` with the deployed configuration and rules: only paths, targets and the alerts' `for` are others."""

    def __init__(self, processes: Processes, targets: list[str]) -> None:
        folder = processes.folder
        self.started = time.time()
        config = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
        config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
        config["rule_files"] = [self.impatient(PROMETHEUS / name, folder) for name in config["rule_files"]]
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
    def impatient(path: pathlib.Path, folder: pathlib.Path) -> str:
        """A copy of rules whose alerts do not wait for minutes."""
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                if rule.get("for", "0s") != "0s":
                    rule["for"] = MOST_FOR
        copy = folder / path.name
        copy.write_text(yaml.safe_dump(rules))
        return str(copy)

    def ask(self, path: str, **parameters: object) -> object:
        answer = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        if answer is None:
            raise Failure("Prometheus does not answer any more")
        return json.loads(answer)["data"]

    def course(self, expr: str) -> list[dict]:
        """All series of an expression since the beginning that have a number."""
        span = {"start": self.started, "end": time.time(), "step": STEP}
        series = self.ask("query_range", query=expr, **span)["result"]
        return [one for one in series if any(not math.isnan(float(value)) for _, value in one["values"])]

    def present(self, expr: str) -> float | None:
        """The value of the only series."""
        series = self.ask("query", query=expr)["result"]
        return float(series[0]["value"][1]) if series else None

    def alert(self, name: str, **labels: str) -> str | None:
        """Whether the alert is `pending` or `firing`."""
        wanted = {"alertname": name, **labels}.items()
        states = [alert["state"] for alert in self.ask("alerts")["alerts"] if wanted <= alert["labels"].items()]
        return states[0] if states else None
