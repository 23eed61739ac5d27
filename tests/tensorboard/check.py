"""Compares the event files of `coordinator tensorboard` with the journal.

    python3 tests/tensorboard/check.py EVENTS_FOLDER JOURNAL.sqlite

TensorBoard's own code reads the files. They must have each step that was not given up once, in
order over all stages, and all values of the journal in single precision.
"""

import json
import math
import sqlite3
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

IN_LINEAGE = """NOT EXISTS (SELECT 1 FROM cuts
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


def to_single_precision(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def expected_values(journal):
    """Returns the values of each tag by step, from the journal."""
    (run_file,) = journal.execute("SELECT run_file_json FROM run ORDER BY number DESC").fetchone()
    before, steps = [], 0
    for stage in json.loads(run_file)["stages"]:
        before.append(steps)
        steps += stage["steps"]
    tags = {}

    def add(tag, stage, step, value):
        if value is not None and math.isfinite(value):
            tags.setdefault(tag, {})[before[stage] + step] = to_single_precision(value)

    for row in journal.execute(f"SELECT * FROM steps AS own WHERE {IN_LINEAGE}"):
        position = row["stage"], row["step"]
        for tag, column in COLUMNS.items():
            add(tag, *position, row[column])
        add("run/stage", *position, row["stage"])
        add("run/generation", *position, row["generation"])
        if row["seconds"]:
            add("speed/images_per_second", *position, row["samples"] / row["seconds"])
        summaries = {name: value for name, value in json.loads(row["summaries_json"]).items() if value["count"]}
        for name in MEANS:
            if name in summaries:
                add(f"train/{name}", *position, summaries[name]["mean"])
        for name in "reward_chosen", "reward_rejected":
            for quantile in "p05", "p25", "p50", "p75", "p95":
                if name in summaries:
                    add(f"train/{name}_{quantile}", *position, summaries[name][quantile])
    for row in journal.execute(f"SELECT * FROM evaluations AS own WHERE {IN_LINEAGE}"):
        for name, score in json.loads(row["metrics_json"]).items():
            add(f"evaluation/{name}", row["stage"], row["step"], score)
    return tags


def main(folder, path):
    journal = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    journal.row_factory = sqlite3.Row
    tags = expected_values(journal)
    # Size guidance 0 keeps all events; other values keep a sample.
    accumulator = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    found_tags = set(accumulator.Tags()["scalars"])
    assert found_tags == set(tags), f"tags differ between files and journal: {sorted(found_tags ^ set(tags))}"
    values = 0
    for tag, by_step in tags.items():
        events = accumulator.Scalars(tag)
        steps = [event.step for event in events]
        # The last state of a stage is the first of the next, and both stages may evaluate it.
        expected_steps = sorted(steps) if tag.startswith("evaluation/") else sorted(set(steps))
        assert steps == expected_steps, f"{tag}: steps are not in order"
        assert {event.step: event.value for event in events} == by_step, f"{tag}: values differ from the journal's"
        values += len(events)
    texts = set(accumulator.Tags()["tensors"])
    evaluated = any(tag.startswith("evaluation/") for tag in tags)
    assert texts == ({"run_file", "captions"} if evaluated else {"run_file"}), texts
    print(f"TensorBoard reads the journal's {values} values of {len(tags)} curves")


if __name__ == "__main__":
    main(*sys.argv[1:])
