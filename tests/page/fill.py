"""fill.py JOURNAL STEPS: a journal as if so many steps had been made of its last stage, with captions and events that are markup."""

import json
import math
import random
import sqlite3
import sys

journal, steps = sqlite3.connect(sys.argv[1]), int(sys.argv[2])
random.seed(1)
MARKUP = '<script>window.hurt = 1</script><img src=x onerror="window.hurt = 2"> a cat'


def distribution(mean, spread):
    points = {name: mean + spread * z for name, z in zip(("min", "p05", "p25", "p50", "p75", "p95", "max"), (-3, -1.6, -0.7, 0, 0.7, 1.6, 3))}
    return {"count": 32, "mean": mean, **points}


def row(step):
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


with journal:
    journal.execute("INSERT INTO generations VALUES (1, '[]', 'start', 1.7e9, 1.7e9, NULL, NULL, 'seed', 0, 0)")
    journal.executemany("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", map(row, range(1, steps + 1)))
    for step in (1_000, steps):
        journal.execute("INSERT INTO evaluations VALUES (2, ?, 1, ?, 1.7e9)", (step, json.dumps({"pac_s": 0.7 + step / 1e6, "cider": 1.1})))
        for image in ("a.jpg", MARKUP):
            item = (2, step, 1, image, f"{MARKUP} {step}", json.dumps([MARKUP]), json.dumps({"pac_s": 0.7}))
            journal.execute("INSERT INTO evaluation_items VALUES (?, ?, ?, ?, ?, ?, ?)", item)
    journal.execute("INSERT INTO events VALUES (1.7e9, 'lost', ?)", (json.dumps({"rank": 1, "reason": MARKUP}),))
journal.close()
