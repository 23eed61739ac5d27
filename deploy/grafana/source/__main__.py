"""Generates the dashboards in deploy/grafana/dashboards.

usage: source [--check]
"""

import pathlib
import sys

from grafana_foundation_sdk.cog.encoder import JSONEncoder

import cluster
import reliability
import training

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "dashboards"


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    for module in (training, cluster, reliability):
        path = FOLDER / f"{module.__name__}.json"
        text = JSONEncoder(sort_keys=True, indent=2).encode(module.build()) + "\n"
        if not check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"error: {path} differs from the output of deploy/grafana/source: run `make dashboards`")


main()
