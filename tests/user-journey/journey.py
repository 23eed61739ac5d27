"""Runs the commands of a user with images of their own, and checks the results.

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

import check_captioners
from captioners import Programs

IMAGES = 40
STEPS = 300
# The first coordinator stops after this step, so that most steps follow the change of settings.
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
CROSS_ENTROPY = """\
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
    return EVALUATOR + CROSS_ENTROPY.format(steps=STEPS, rate=rate, bound=bound) + DICO


class Journey(Programs):
    """Runs the programs of the journey."""

    def attempt(self, program: str, *options: str) -> subprocess.CompletedProcess:
        """Runs a program that may fail, and returns its result."""
        command = [self.folder / program, *options]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def expect_refusal(self, *options: str) -> str:
        """Runs a coordinator that must fail with status 1, and returns its output."""
        result = self.attempt("coordinator", *options)
        assert result.returncode == 1, f"{options} must fail with status 1: {result}"
        return result.stderr + result.stdout

    def inspect(self, *options: str) -> dict[str, tuple[int, int]]:
        """Returns the numbers of images and captions of each split."""
        inspection = json.loads(self.output("worker", "inspect", *options, "--json"))
        return {name: (split["images"], split["captions"]) for name, split in inspection["splits"].items()}

    @contextlib.contextmanager
    def serve(self, config: pathlib.Path, *more: str):
        """Starts a coordinator, and yields its URL. Waits for the end of the run."""
        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with self.started("coordinator", "serve", "--config", str(config), *ports, *more) as coordinator:
            yield "http://" + re.search(r"grpc=(\S+)", coordinator.stdout.readline())[1]

    def wait_for_step(self, url: str, step: int) -> None:
        """Waits until the second stage has reached a step."""
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
        sys.exit(f"the run ended before step {step}")


def write_formats(folder: pathlib.Path) -> dict[str, list[dict]]:
    """Writes the data set in all formats. Returns the images with their captions by split."""
    dataset = json.loads((folder / "world/dataset.json").read_text())
    splits = {split: [image for image in dataset["images"] if image["split"] == split] for split in ("train", "val", "test")}
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
    """Checks that all formats have the same images and captions. Returns their numbers by split."""
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
        inspected = journey.inspect(str(config))
        assert inspected == expected, f"{name}: {inspected}, not {expected}"
        journey.output("coordinator", "validate", "--config", str(config))
    return expected


def check_untrained_dico_is_refused(journey: Journey, config: pathlib.Path) -> None:
    """Checks that DiCO with an untrained captioner is refused with the missing stage."""
    config.write_text(run_file(DICO))
    output = journey.expect_refusal("validate", "--config", str(config))
    assert "cross_entropy" in output and "run.yaml:" in output, output


def change_data(folder: pathlib.Path) -> None:
    """Corrects a caption of the validation split, and removes an image from the training split."""
    dataset = json.loads((folder / "world/dataset.json").read_text())
    image = next(image for image in dataset["images"] if image["split"] == "val")
    image["sentences"][0] = {"raw": "a corrected caption", "tokens": ["a", "corrected", "caption"]}
    dataset["images"].remove(next(image for image in dataset["images"] if image["split"] == "train"))
    (folder / "world/dataset.json").write_text(json.dumps(dataset))


def train(journey: Journey, folder: pathlib.Path, config: pathlib.Path) -> None:
    """Trains a run, stops it, changes its learning rate, guard and data, and resumes it."""
    config.write_text(run_file(stages(1.0e-3, 19)))
    with journey.serve(config) as url, journey.started("worker", "join", "--coordinator", url, "--threads", "1") as worker:
        journey.wait_for_step(url, STOPPED_AFTER)
        journey.output("coordinator", "stop", "--coordinator", url)
        assert "left rank=0" in worker.stdout.read()
    change_data(folder)
    config.write_text(run_file(stages(2.0e-3, 18)))
    output = journey.expect_refusal("serve", "--config", str(config), "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    for text in ("stages[1].optimizer.learning_rate", "0.001", "0.002", "guard", "--accept-changes"):
        assert text in output, f"{text} is missing in: {output}"
    with journey.serve(config, "--accept-changes") as url:
        assert "finished rank=0" in journey.output("worker", "join", "--coordinator", url, "--threads", "1")


def check_journal(journey: Journey, folder: pathlib.Path, config: pathlib.Path, images: int) -> tuple[int, int]:
    """Checks the journal: each step once with the correct learning rate, and all changes.

    `images`: training images at the start of the run. Returns the number of steps before the change
    and after it.
    """
    audit = json.loads(journey.output("coordinator", "audit", "--config", str(config), "--json"))
    assert audit["clean"] and audit["finished"], audit
    data_changes = [(change["stage"], change["images_before"], change["images_after"]) for change in audit["exchanges"]]
    assert data_changes == [(1, images, images - 1)], audit
    with contextlib.closing(sqlite3.connect(f"file:{folder}/run/coordinator/journal.sqlite?mode=ro", uri=True)) as journal:
        rates = [rate for (rate,) in journal.execute("SELECT learning_rate FROM steps WHERE stage = 1 ORDER BY step")]
    before = rates.count(1.0e-3)
    assert len(rates) == STEPS and before >= STOPPED_AFTER and rates == [1.0e-3] * before + [2.0e-3] * (STEPS - before), rates
    events = journey.output("coordinator", "events", "--config", str(config))
    for kind in ("settings_changed", "data_changed", "checkpoint", "evaluation", "finished"):
        assert f"  {kind} " in events, f"no {kind} in:\n{events}"
    return before, STEPS - before


def check_export(journey: Journey, folder: pathlib.Path, config: pathlib.Path) -> int:
    """Compares transformers with `worker caption`. Returns the number of distinct captions."""
    checkpoint = str(max((folder / "run/checkpoints").iterdir()))
    journey.output("worker", "export", "--from", checkpoint, "--to", str(folder / "exported"))
    paths = [str(path) for path in sorted((folder / "world/images").iterdir())[:10]]
    output = journey.output("worker", "caption", "--checkpoint", checkpoint, "--beams", "5", "--max-length", "30", "--json", *paths)
    images = [json.loads(line) for line in output.splitlines()]
    return check_captioners.check_captions(folder / "exported", check_captioners.load_model(folder / "exported"), images)


def check_scores(journey: Journey, config: pathlib.Path, images: int) -> None:
    """Scores the captions of the last evaluation against the references of the split."""
    scored = json.loads(journey.output("worker", "score", "--config", str(config), "--split", "val", "--json"))
    assert len(scored["items"]["cider"]) == images, scored


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    journey = Journey(pathlib.Path(sys.argv[2]), sys.argv[3], folder / "log")
    journey.output("worker", "synthesize", "--out", f"{folder}/world", "--images", str(IMAGES), "--seed", "3")
    expected = check_formats(journey, folder)
    print(f"four formats give the same splits: {expected}")
    config = folder / "run.yaml"
    check_untrained_dico_is_refused(journey, config)
    train(journey, folder, config)
    before, after = check_journal(journey, folder, config, expected["train"][0])
    print(f"the run has {before} steps before the changes and {after} after them")
    check_scores(journey, config, expected["val"][0])
    distinct = check_export(journey, folder, config)
    print(f"transformers writes the captions of `worker caption`: {distinct} distinct captions of 10 images")


if __name__ == "__main__":
    main()
