"""Trains and exports the captioners of the test.

Writes FOLDER/NAME, the exported captioner, FOLDER/NAME.json, the output of `worker caption`, and
FOLDER/images.

Usage: captioners.py FOLDER PROGRAMS LIBRARIES. LIBRARIES is the folder of libtorch's libraries.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys

from PIL import Image

# Name of the exported folder -> vocabulary of the run file.
VOCABULARIES = {"my-dico": "full", "my-corpus": "corpus"}
RUN_FILE = """\
name: {name}
seed: 11
output: {folder}/runs/{name}
workers: {{ min: 1, max: 1 }}
data:
  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}
vocabulary: {vocabulary}
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny, dropout: 0.0 }}
stages:
  - {{ name: evaluator, objective: contrastive, steps: 1, batch: 8, optimizer: {{ learning_rate: 1.0e-6 }} }}
  - name: xe
    objective: cross_entropy
    steps: 200
    batch: 12
    optimizer: {{ learning_rate: 2.0e-3, clip_norm: 1.0 }}
    schedule: {{ shape: cosine, warmup: 0.1 }}
"""
# With few images the captioners memorise them, so captions differ between images.
DATASET_IMAGES = 25
# Images are resized to these sizes, to cover odd margins and scales. None: the original size.
SIZES = [None, None, None, None, None, (131, 97), (90, 155), (64, 65), (67, 64), (640, 479)]


class Programs:
    """Runs the programs of a folder with libtorch. Their standard error goes to a log."""

    def __init__(self, folder: pathlib.Path, libraries: str, log: pathlib.Path):
        self.folder, self.log = folder, log
        self.environment = os.environ | {"LD_LIBRARY_PATH": libraries}

    def output(self, program: str, *options: str) -> str:
        with self.started(program, *options) as process:
            return process.stdout.read()

    @contextlib.contextmanager
    def started(self, program: str, *options: str):
        """Starts a process for the duration of a `with` block.

        Waits for its end, or kills it if the block raises. Exits if the process fails.
        """
        with open(self.log, "a") as log:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log}
            process = subprocess.Popen([self.folder / program, *options], env=self.environment, text=True, **pipes)
        try:
            yield process
            process.wait()
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        if process.returncode != 0:
            last = "\n".join(self.log.read_text().splitlines()[-20:])
            sys.exit(f"{program} {options[0]} exited with status {process.returncode}:\n{last}")

    def train(self, config: pathlib.Path) -> None:
        """Trains a run with one worker to its end."""
        ports = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        with self.started("coordinator", "serve", "--config", str(config), *ports) as coordinator:
            address = re.search(r"grpc=(\S+)", coordinator.stdout.readline())[1]
            self.output("worker", "join", "--coordinator", f"http://{address}", "--threads", "1")


def write_images(folder: pathlib.Path) -> list[str]:
    """Copies some images of the data set, resizes some of them, and returns the paths."""
    (folder / "images").mkdir()
    paths = []
    for number, (path, size) in enumerate(zip(sorted((folder / "world/images").iterdir()), SIZES)):
        copy = folder / f"images/{number}.png"
        image = Image.open(path)
        (image.resize(size, Image.Resampling.BICUBIC) if size else image).save(copy)
        paths.append(str(copy))
    return paths


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    programs = Programs(pathlib.Path(sys.argv[2]), sys.argv[3], folder / "log")
    programs.output("worker", "synthesize", "--out", f"{folder}/world", "--images", str(DATASET_IMAGES), "--seed", "3")
    paths = write_images(folder)
    for name, vocabulary in VOCABULARIES.items():
        config = folder / f"{name}.yaml"
        config.write_text(RUN_FILE.format(name=name, folder=folder, vocabulary=vocabulary))
        programs.train(config)
        checkpoint = str(max((folder / f"runs/{name}/checkpoints").iterdir()))
        programs.output("worker", "export", "--from", checkpoint, "--to", str(folder / name))
        output = programs.output("worker", "caption", "--checkpoint", checkpoint, "--json", *paths)
        (folder / f"{name}.json").write_text(json.dumps([json.loads(line) for line in output.splitlines()]))


if __name__ == "__main__":
    main()
