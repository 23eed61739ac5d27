"""fill_journal.py JOURNAL STEPS: adds STEPS steps of the last stage to a journal, and captions and events with markup."""

import hashlib
import json
import math
import random
import sqlite3
import struct
import sys

journal, steps = sqlite3.connect(sys.argv[1]), int(sys.argv[2])
random.seed(1)
MARKUP = '<script>window.hurt = 1</script><img src=x onerror="window.hurt = 2"> a cat'


def distribution(mean, spread):
    """The summary of a normal distribution."""
    quantiles = {name: mean + spread * z for name, z in zip(("min", "p05", "p25", "p50", "p75", "p95", "max"), (-3, -1.6, -0.7, 0, 0.7, 1.6, 3))}
    return {"count": 32, "mean": mean, **quantiles}


def step_row(step):
    """A row of the table `steps`."""
    progress = 1 - math.exp(-step / 20_000)
    noise = random.gauss(0, 0.02)
    summaries = {
        "reward_chosen": distribution(0.75 + 0.2 * progress + noise, 0.06),
        "reward_rejected": distribution(0.7 + 0.18 * progress + noise, 0.08),
        "reward_margin": distribution(0.05 + 0.02 * progress, 0.01),
        "implicit_accuracy": distribution(0.5 + 0.3 * progress + noise, 0.3),
        "kl": distribution(0.4 * progress + abs(noise), 0.1),
        "gamma_entropy": distribution(1.2 - 0.3 * progress, 0.1),
        "caption_length": distribution(9 + 4 * progress + 10 * noise, 2),
        "repetition": distribution(0.05 + abs(noise), 0.05),
    }
    loss = 0.69 - 0.2 * progress + noise
    return (2, step, 1, loss, 5e-5, 1 + abs(noise), 0.9, 0.1, 32, json.dumps(summaries), 1.7e9 + step, 0, 0.05)


# The queries for the content of records, as in crates/journal/src/chain.rs.
CONTENT_QUERIES = {
    "formed": ["SELECT number, members_json, cause, formed_at, source, stage, step, term FROM generations WHERE number = :generation"],
    "ready": ["SELECT number, ready_at FROM generations WHERE number = :generation"],
    "step": ["SELECT * FROM steps WHERE (stage, step, generation) = (:stage, :step, :generation)"],
    "evaluated": [
        "SELECT * FROM evaluations WHERE (stage, step, generation) = (:stage, :step, :generation)",
        "SELECT * FROM evaluation_items WHERE (stage, step, generation) = (:stage, :step, :generation) ORDER BY image",
    ],
    "event": ["SELECT * FROM events WHERE number = :number"],
}
KEYS = ("stage", "step", "generation", "number")


def encode(value):
    """The bytes of a value with its type, as they are hashed."""
    match value:
        case None:
            return b"\0" + struct.pack("<Q", 0)
        case int():
            return b"\1" + struct.pack("<q", value)
        case float():
            return b"\2" + struct.pack("<d", value)
        case str():
            return b"\3" + struct.pack("<Q", len(value.encode())) + value.encode()


def append_to_chain(kind, **keys):
    """Appends a record, whose rows are in the journal, to the journal's hash chain."""
    sequence, previous_hash = journal.execute("SELECT sequence, hash FROM chain ORDER BY sequence DESC LIMIT 1").fetchone()
    keys = {key: keys.get(key) for key in KEYS}
    content = hashlib.sha256(previous_hash + struct.pack("<Q", sequence + 1) + kind.encode())
    for key in keys.values():
        content.update(struct.pack("<Bq", key is not None, key or 0))
    for query in CONTENT_QUERIES[kind]:
        for row in journal.execute(query, keys):
            content.update(b"".join(map(encode, row)))
    journal.execute("INSERT INTO chain VALUES (?, ?, ?, ?, ?, ?, ?)", (sequence + 1, kind, *keys.values(), content.digest()))


with journal:
    journal.execute("INSERT INTO generations VALUES (1, '[]', 'start', 1.7e9, 1.7e9, NULL, NULL, 'seed', 0, 0, 7)")
    journal.executemany("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(step_row, range(1, steps + 1)))
    append_to_chain("formed", generation=1)
    append_to_chain("ready", generation=1)
    for step in range(1, steps + 1):
        append_to_chain("step", stage=2, step=step, generation=1)
    for step in (1_000, steps):
        journal.execute("INSERT INTO evaluations VALUES (2, ?, 1, ?, 1.7e9)", (step, json.dumps({"pac_s": 0.7 + step / 1e6, "cider": 1.1})))
        for image in ("a.jpg", MARKUP):
            item = (2, step, 1, image, f"{MARKUP} {step}", json.dumps([MARKUP]), json.dumps({"pac_s": 0.7}))
            journal.execute("INSERT INTO evaluation_items VALUES (?, ?, ?, ?, ?, ?, ?)", item)
        append_to_chain("evaluated", stage=2, step=step, generation=1)
    event = "INSERT INTO events (at, kind, detail_json) VALUES (1.7e9, 'lost', ?)"
    append_to_chain("event", number=journal.execute(event, (json.dumps({"rank": 1, "reason": MARKUP}),)).lastrowid)
journal.close()
