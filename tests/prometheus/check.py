"""Checks deploy/prometheus and deploy/grafana: first what needs no run, then against a real one.

usage: check.py PROGRAMS
"""

import pathlib
import signal
import sys
import tempfile

import answers
import deployed
import static
from processes import Failure, Processes
from story import Story, say


def watched(programs: pathlib.Path) -> list[str]:
    """What does not hold of a real run."""
    with tempfile.TemporaryDirectory() as folder:
        processes = Processes(pathlib.Path(folder))
        try:
            story = Story(processes, programs)
            found = list(story.tell())
            say("every query of every panel and rule")
            return [*found, *answers.unanswered(story), *answers.unknown(story)]
        finally:
            processes.stop()


def main() -> None:
    # Whoever ends this program ends what it started, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    say("configuration, unit tests, dashboards")
    try:
        problems = static.problems() or watched(pathlib.Path(sys.argv[1]))
    except Failure as failure:
        problems = [str(failure)]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    queries, recorded, alerts = (len(found()) for found in (deployed.panels, deployed.recorded, deployed.alerts))
    print(f"all {queries} queries of dashboards, {recorded} recording rules and {alerts} alerts find their data")


main()
