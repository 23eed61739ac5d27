"""Checks deploy/prometheus and deploy/grafana, first without a run, then with a real run.

usage: check.py PROGRAMS
"""

import pathlib
import signal
import sys
import tempfile

import deployed
import queries
import static_checks
from processes import CheckError, Processes
from watched_run import WatchedRun, print_heading


def check_with_run(programs: pathlib.Path) -> list[str]:
    """Returns the problems that a real run shows."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(pathlib.Path(folder))
        try:
            watched_run = WatchedRun(processes, programs)
            problems = list(watched_run.execute())
            print_heading("every query of every panel and rule")
            return [*problems, *queries.without_data(watched_run), *queries.unknown_names(watched_run)]
        finally:
            processes.stop()


def main() -> None:
    # A signal that ends this program also ends the processes that it started.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    print_heading("configuration, unit tests, dashboards")
    try:
        problems = static_checks.problems() or check_with_run(pathlib.Path(sys.argv[1]))
    except CheckError as failure:
        problems = [str(failure)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    panels, recorded, alerts = (len(expressions()) for expressions in (deployed.panels, deployed.recorded, deployed.alerts))
    print(f"all {panels} queries of dashboards, {recorded} recording rules and {alerts} alerts find their data")


main()
