"""Trains an evaluator in two stages, all weights and then LoRA factors, and exports it.

Writes FOLDER/merged.pth and FOLDER/apart.pth. FOLDER/evaluators.json has the settings and scores of
`worker score` with each.

Usage: evaluators.py FOLDER PROGRAMS LIBRARIES, after captioners.py.
"""

import json
import pathlib
import sys

from captioners import Programs

RUN_FILE = """\
name: pac
seed: 11
output: {folder}/runs/pac
workers: {{ min: 1, max: 1 }}
data:
  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}
vocabulary: full
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny }}
stages:
  - name: all
    objective: contrastive
    steps: 400
    batch: 12
    optimizer: {{ learning_rate: 1.0e-3 }}
  - name: lora
    objective: {{ contrastive: {{ trainable: {{ lora: {{ rank: 4, alpha: 16 }} }} }} }}
    steps: 30
    batch: 12
    optimizer: {{ learning_rate: 3.0e-3 }}
"""


def read_references(folder: pathlib.Path) -> dict[str, list[str]]:
    """Returns the reference captions of the images that captioners.py wrote, by file name."""
    references = {image["filename"]: image["sentences"] for image in json.loads((folder / "world/dataset.json").read_text())["images"]}
    names = sorted(path.name for path in (folder / "world/images").iterdir())
    count = len(list((folder / "images").iterdir()))
    return {f"{number}.png": [sentence["raw"] for sentence in references[name]] for number, name in enumerate(names[:count])}


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    programs = Programs(pathlib.Path(sys.argv[2]), sys.argv[3], folder / "log")
    config = folder / "pac.yaml"
    config.write_text(RUN_FILE.format(folder=folder))
    programs.train(config)
    checkpoint = str(max((folder / "runs/pac/checkpoints").iterdir()))
    references = read_references(folder)
    (folder / "references.json").write_text(json.dumps(references))
    candidates = {image: texts[0] for image, texts in references.items()}
    (folder / "candidates.json").write_text(json.dumps(candidates))
    options = ["--references", f"{folder}/references.json", "--candidates", f"{folder}/candidates.json"]
    options += ["--images", f"{folder}/images", "--json"]
    result = {"candidates": candidates, "evaluators": {}}
    for layout in ("merged", "apart"):
        to = f"{folder}/{layout}.pth"
        exported = programs.output(
            "worker", "export-evaluator", "--from", checkpoint, "--to", to, "--lora", layout, "--json"
        )
        settings = json.loads(exported)["clip"]
        evaluator = ",".join([f"pac_s={to}", *(f"{key}={value}" for key, value in settings.items())])
        scores = json.loads(programs.output("worker", "score", *options, "--evaluator", evaluator))
        result["evaluators"][layout] = {"settings": settings, "pac_s": scores["items"]["pac_s"]}
    (folder / "evaluators.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
