"""Compares the event files of `coordinator tensorboard` with the journal that they were made of.

    python3 tests/tensorboard/check.py EVENTS_FOLDER JOURNAL.sqlite

The files are read by TensorBoard's own code. All steps that were not given up have to be there once, in one order over all stages,
and every number as it is in the journal, to single precision.
"""

import json
import math
import sqlite3
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PRESENT = """NOT EXISTS (SELECT 1 FROM cuts
    WHERE cuts.generation >= own.generation AND (cuts.stage, cuts.step) < (own.stage, own.step))"""
COLUMNS = {
    "train/loss": "loss",
    "train/learning_rate": "learning_rate",
    "train/gradient_norm": "gradient_norm",
    "speed/step_seconds": "seconds",
    "speed/all_reduce_seconds": "all_reduce_seconds",
    "speed/lag_seconds": "lag_seconds",
}
MEANS = ["reward_margin", "implicit_accuracy", "kl", "gamma_entropy", "caption_length", "repetition"]


def single(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def expected(journal):
    """Values of each tag by step."""
    (run_file,) = journal.execute("SELECT run_file_json FROM run ORDER BY number DESC").fetchone()
    before, steps = [], 0
    for stage in json.loads(run_file)["stages"]:
        before.append(steps)
        steps += stage["steps"]
    tags = {}

    def put(tag, stage, step, value):
        if value is not None and math.isfinite(value):
            tags.setdefault(tag, {})[before[stage] + step] = single(value)

    for row in journal.execute(f"SELECT * FROM steps AS own WHERE {PRESENT}"):
        at = row["stage"], row["step"]
        for tag, column in COLUMNS.items():
            put(tag, *at, row[column])
        put("run/stage", *at, row["stage"])
        put("run/generation", *at, row["generation"])
        if row["seconds"]:
            put("speed/images_per_second", *at, row["samples"] / row["seconds"])
        summaries = {name: value for name, value in json.loads(row["summaries_json"]).items() if value["count"]}
        for name in MEANS:
            if name in summaries:
                put(f"train/{name}", *at, summaries[name]["mean"])
        for name in "reward_chosen", "reward_rejected":
            for quantile in "p05", "p25", "p50", "p75", "p95":
                if name in summaries:
                    put(f"train/{name}_{quantile}", *at, summaries[name][quantile])
    for row in journal.execute(f"SELECT * FROM evaluations AS own WHERE {PRESENT}"):
        for name, score in json.loads(row["metrics_json"]).items():
            put(f"evaluation/{name}", row["stage"], row["step"], score)
    return tags


def main(folder, path):
    journal = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    journal.row_factory = sqlite3.Row
    tags = expected(journal)
    # 0: keep all, rather than a sample.
    found = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    known = set(found.Tags()["scalars"])
    assert known == set(tags), f"only in one of both: {sorted(known ^ set(tags))}"
    values = 0
    for tag, by_step in tags.items():
        events = found.Scalars(tag)
        steps = [event.step for event in events]
        # The state that a stage ends with is the one that the next begins with, and both may have been evaluated.
        once = sorted(steps) if tag.startswith("evaluation/") else sorted(set(steps))
        assert steps == once, f"{tag}: steps are not in order"
        assert {event.step: event.value for event in events} == by_step, f"{tag}: other values than the journal's"
        values += len(events)
    texts = set(found.Tags()["tensors"])
    evaluated = any(tag.startswith("evaluation/") for tag in tags)
    assert texts == ({"run_file", "captions"} if evaluated else {"run_file"}), texts
    print(f"TensorBoard has {values} values of {len(tags)} curves as they are in the journal")


if __name__ == "__main__":
    main(*sys.argv[1:])
