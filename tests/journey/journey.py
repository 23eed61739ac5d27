"""The journey of tests/journey/run: what a user does with images of their own, and what has to come of it.

Usage: journey.py FOLDER PROGRAMS LIBRARIES. LIBRARIES are libtorch's.
"""

import contextlib
import io
import json
import pathlib
import re
import sqlite3
import subprocess
import sys
import tarfile

import check
from captioners import Programs

IMAGES = 40
STEPS = 300
# Where the first coordinator is stopped: early enough that most steps come after the change.
STOPPED_AFTER = 10
RUN_FILE = """\
name: journey
seed: 11
output: run
workers: {{ min: 1, max: 1 }}
data:
  {data}
vocabulary: corpus
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny, dropout: 0.0 }}
decoding: {{ beams: 3, max_length: 20 }}
stages:
{stages}"""
EVALUATOR = "  - { name: evaluator, objective: contrastive, steps: 4, batch: 8, optimizer: { learning_rate: 1.0e-3 } }\n"
TEACHER_FORCING = """\
  - name: xe
    objective: cross_entropy
    steps: {steps}
    batch: 12
    checkpoint_every: 50
    optimizer: {{ learning_rate: {rate}, clip_norm: 1.0 }}
    evaluate_every: 100
    guard: [{{ metric: mean_length, above: {bound}, action: warn }}]
"""
DICO = "  - { name: dico, objective: dico, steps: 2, batch: 4, optimizer: { learning_rate: 1.0e-5 } }\n"
KARPATHY = "karpathy: {{ annotations: {annotations}, images: world/images }}"


def run_file(stages: str, annotations: str = "world/dataset.json") -> str:
    return RUN_FILE.format(data=KARPATHY.format(annotations=annotations), stages=stages)


def stages(rate: float, bound: int) -> str:
    return EVALUATOR + TEACHER_FORCING.format(steps=STEPS, rate=rate, bound=bound) + DICO


class Journey(Programs):
    def attempt(self, program: str, *options: str) -> subprocess.CompletedProcess:
        """Runs a program that may fail."""
        command = [self.folder / program, *options]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def refused(self, *options: str) -> str:
        """What a coordinator says that refuses to do something."""
        done = self.attempt("coordinator", *options)
        assert done.returncode == 1, f"{options} should have been refused: {done}"
        return done.stderr + done.stdout

    def inspected(self, *options: str) -> dict[str, tuple[int, int]]:
        """Images and captions of each split."""
        seen = json.loads(self.output("worker", "inspect", *options, "--json"))
        return {name: (split["images"], split["captions"]) for name, split in seen["splits"].items()}

    @contextlib.contextmanager
    def served(self, config: pathlib.Path, *more: str):
        """A coordinator that serves a run file to its end; its URL."""
        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with self.started("coordinator", "serve", "--config", str(config), *ports, *more) as coordinator:
            yield "http://" + re.search(r"grpc=(\S+)", coordinator.stdout.readline())[1]

    def until(self, url: str, step: int) -> None:
        """Waits until the second stage has come to a step."""
        watch = ["watch", "--json", "--interval", "0.05", "--coordinator", url]
        process = subprocess.Popen([self.folder / "coordinator", *watch], env=self.environment, text=True, stdout=subprocess.PIPE)
        try:
            for line in process.stdout:
                status = json.loads(line).get("status") or {"stage": 0}
                if status["stage"] == 1 and status["step"] >= step:
                    return
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        sys.exit(f"the run has ended before step {step}")


def write_formats(folder: pathlib.Path) -> dict[str, list[dict]]:
    """Writes the world's images and captions in all formats; images with their captions, by split."""
    world = json.loads((folder / "world/dataset.json").read_text())
    splits = {split: [image for image in world["images"] if image["split"] == split] for split in ("train", "val", "test")}
    for split, images in splits.items():
        captions = {image["filename"]: [sentence["raw"] for sentence in image["sentences"]] for image in images}
        coco = {"images": [{"id": number, "file_name": name} for number, name in enumerate(captions)], "annotations": []}
        for number, texts in enumerate(captions.values()):
            for text in texts:
                coco["annotations"].append({"id": len(coco["annotations"]), "image_id": number, "caption": text})
        (folder / f"captions_{split}.json").write_text(json.dumps(coco))
        for form, text_of in {"txt": "\n".join, "json": lambda texts: json.dumps({"captions": texts})}.items():
            with tarfile.open(folder / f"{form}-{split}.tar", "w") as tar:
                for name, texts in captions.items():
                    tar.add(folder / "world/images" / name, name)
                    data = text_of(texts).encode()
                    member = tarfile.TarInfo(f"{pathlib.Path(name).stem}.{form}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return splits


def check_formats(journey: Journey, folder: pathlib.Path) -> dict[str, tuple[int, int]]:
    """All formats give the same images and captions."""
    splits = write_formats(folder)
    expected = {split: (len(images), sum(len(image["sentences"]) for image in images)) for split, images in splits.items()}
    assert sum(images for images, _ in expected.values()) == IMAGES, expected
    coco = {split: f"{{ annotations: captions_{split}.json, images: world/images }}" for split in expected}
    formats = {
        "karpathy": KARPATHY.format(annotations="world/dataset.json"),
        "coco": f"coco: {{ train: {coco['train']}, val: {coco['val']}, test: {coco['test']} }}",
        "txt": "webdataset: { train: txt-train.tar, validation: txt-val.tar, test: txt-test.tar }",
        "json": "webdataset: { train: json-train.tar, dev: json-val.tar, test: json-test.tar }",
    }
    for name, data in formats.items():
        config = folder / f"{name}.yaml"
        config.write_text(RUN_FILE.format(data=data, stages=stages(1.0e-3, 19)))
        found = journey.inspected(str(config))
        assert found == expected, f"{name}: {found}, not {expected}"
        journey.output("coordinator", "validate", "--config", str(config))
    return expected


def check_nonsense(journey: Journey, config: pathlib.Path) -> None:
    """DiCO with a captioner that nothing has trained is refused, with the stage that is missing."""
    config.write_text(run_file(DICO))
    said = journey.refused("validate", "--config", str(config))
    assert "cross_entropy" in said and "run.yaml:" in said, said


def mend_data(folder: pathlib.Path) -> None:
    """Corrects a caption of the validation split, and takes an image out of the training split."""
    world = json.loads((folder / "world/dataset.json").read_text())
    image = next(image for image in world["images"] if image["split"] == "val")
    image["sentences"][0] = {"raw": "a corrected caption", "tokens": ["a", "corrected", "caption"]}
    world["images"].remove(next(image for image in world["images"] if image["split"] == "train"))
    (folder / "world/dataset.json").write_text(json.dumps(world))


def train(journey: Journey, folder: pathlib.Path, config: pathlib.Path) -> None:
    """A run that is stopped, gets another learning rate, another bound of its guard and corrected data, and goes on."""
    config.write_text(run_file(stages(1.0e-3, 19)))
    with journey.served(config) as url, journey.started("worker", "join", "--coordinator", url, "--threads", "1") as worker:
        journey.until(url, STOPPED_AFTER)
        journey.output("coordinator", "stop", "--coordinator", url)
        assert "left rank=0" in worker.stdout.read()
    mend_data(folder)
    config.write_text(run_file(stages(2.0e-3, 18)))
    said = journey.refused("serve", "--config", str(config), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    for part in ("stages[1].optimizer.learning_rate", "0.001", "0.002", "guard", "--accept-changes"):
        assert part in said, f"{part} is missing in: {said}"
    with journey.served(config, "--accept-changes") as url:
        assert "finished rank=0" in journey.output("worker", "join", "--coordinator", url, "--threads", "1")


def check_record(journey: Journey, folder: pathlib.Path, config: pathlib.Path, images: int) -> tuple[int, int]:
    """Of a run that began with so many images. The journal has every step once, with the rate of its time, and what was changed. Steps at either rate."""
    audit = json.loads(journey.output("coordinator", "audit", "--config", str(config), "--json"))
    assert audit["clean"] and audit["finished"], audit
    exchanged = [(found["stage"], found["images_before"], found["images_after"]) for found in audit["exchanges"]]
    assert exchanged == [(1, images, images - 1)], audit
    with contextlib.closing(sqlite3.connect(f"file:{folder}/run/coordinator/journal.sqlite?mode=ro", uri=True)) as journal:
        rates = [rate for (rate,) in journal.execute("SELECT learning_rate FROM steps WHERE stage = 1 ORDER BY step")]
    before = rates.count(1.0e-3)
    assert len(rates) == STEPS and before >= STOPPED_AFTER and rates == [1.0e-3] * before + [2.0e-3] * (STEPS - before), rates
    told = journey.output("coordinator", "events", "--config", str(config))
    for kind in ("settings_changed", "data_changed", "checkpoint", "evaluation", "finished"):
        assert f"  {kind} " in told, f"no {kind} in:\n{told}"
    return before, STEPS - before


def check_export(journey: Journey, folder: pathlib.Path, config: pathlib.Path) -> int:
    """transformers writes what `worker caption` writes. Returns how many captions differ from one another."""
    checkpoint = str(max((folder / "run/checkpoints").iterdir()))
    journey.output("worker", "export", "--from", checkpoint, "--to", str(folder / "exported"))
    paths = [str(path) for path in sorted((folder / "world/images").iterdir())[:10]]
    said = journey.output("worker", "caption", "--checkpoint", checkpoint, "--beams", "5", "--max-length", "30", "--json", *paths)
    images = [json.loads(line) for line in said.splitlines()]
    return check.check_words(folder / "exported", check.loaded(folder / "exported"), images)


def check_scores(journey: Journey, config: pathlib.Path, images: int) -> None:
    """What the run wrote last is scored against the references of its split."""
    scored = json.loads(journey.output("worker", "score", "--config", str(config), "--split", "val", "--json"))
    assert len(scored["items"]["cider"]) == images, scored


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    journey = Journey(pathlib.Path(sys.argv[2]), sys.argv[3], folder / "log")
    journey.output("worker", "synthesize", "--out", f"{folder}/world", "--images", str(IMAGES), "--seed", "3")
    expected = check_formats(journey, folder)
    print(f"four formats give the same splits: {expected}")
    config = folder / "run.yaml"
    check_nonsense(journey, config)
    train(journey, folder, config)
    before, after = check_record(journey, folder, config, expected["train"][0])
    print(f"the run has {before} steps before the changes and {after} after them")
    check_scores(journey, config, expected["val"][0])
    distinct = check_export(journey, folder, config)
    print(f"transformers writes what `worker caption` writes: {distinct} captions of 10 images")


if __name__ == "__main__":
    main()
