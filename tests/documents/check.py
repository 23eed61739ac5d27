"""Runs the documents' commands, in order, and prints how each was proven."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import documents
from documents import ROOT, Command
from rules import Rule, rule
from shell import Shell

PROGRAMS = pathlib.Path(os.environ["PROGRAMS"]).resolve()
RUN_FILE = """\
name: {name}
seed: 3
output: {output}
workers: {{ min: 1, max: 2 }}
data:
  karpathy: {{ annotations: runs/demo/world/dataset.json, images: runs/demo/world/images }}
  scenes: runs/demo/world/scenes.json
vocabulary: corpus
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny, dropout: 0.0 }}
decoding: {{ beams: 3, max_length: 12 }}
stages:
  - {{ name: evaluator, objective: contrastive, steps: 4, batch: 8, optimizer: {{ learning_rate: 1.0e-3 }} }}
  - {{ name: xe, objective: cross_entropy, steps: {steps}, batch: 8, optimizer: {{ learning_rate: 1.0e-3 }} }}
  - {{ name: dico, objective: dico, steps: 50, batch: 4, optimizer: {{ learning_rate: 1.0e-4 }} }}
"""


class World:
    """What a reader has: the repository, built, with a world, and files called as in the examples."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        for name in documents.repository():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        for place in ("target/release", "target/debug", "bin"):
            (folder / place).mkdir(parents=True)
            for program in PROGRAMS.iterdir():
                if program.is_file() and os.access(program, os.X_OK):
                    (folder / place / program.name).symlink_to(program)
        subprocess.run(
            [PROGRAMS / "worker", "synthesize", "--out", folder / "runs/demo/world", "--images", "60", "--seed", "7"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # The demo ends within a minute, the other run not at all.
        self.write("configs/demo.yaml", RUN_FILE.format(name="demo", output="runs/demo", steps=4))
        self.write("run.yaml", RUN_FILE.format(name="run", output="runs/run", steps=1_000_000))
        self.write("captions_val2014.json", '{"1": ["a red ball on the grass"], "2": ["a blue star", "a star"]}')
        self.write("results.json", '{"1": "a red ball", "2": "a blue star"}')

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def shell(self) -> Shell:
        kept = {name: os.environ[name] for name in ("HOME", "LIBTORCH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")}
        path = f"{self.folder}/bin:{os.environ['PATH']}"
        return Shell(self.folder, kept | {"PATH": path, "KUBECONFIG": "/dev/null", "NO_COLOR": "1"})


class Reader:
    """Does what a document says."""

    def __init__(self, world: World, document: str):
        self.world, self.document = world, document
        self.shell = world.shell()
        self.serving: list[str] = []

    def prove(self, command: Command, by: Rule) -> None:
        """Raises AssertionError if it cannot be."""
        text = command.text.replace(*by.instead)
        match by.how:
            case "run":
                self.expect(text, 0)
            case "watch":
                self.expect(f"timeout --signal INT 3 {text}", 124)
            case "fail":
                status, said = self.shell.run(text)
                assert status not in (0, 2) and re.search(by.until, said), f"{by.why}, but: status {status}: {said}"
            case "serve":
                if "serve" in text:
                    self.stop()
                self.shell.background(text, by.until)
                self.serving.append(text)
            case "make":
                self.at_the_root(f"make --dry-run {text.removeprefix('make')}")
            case "build":
                self.at_the_root(f"RUSTC_BOOTSTRAP=1 {text} --locked --offline -Z unstable-options --unit-graph")
            case "elsewhere":
                for word in shlex.split(text):
                    if re.match(r"(deploy|configs|tests|tools|docs)/", word):
                        assert list(ROOT.glob(word)), f"{word} is not there"

    def expect(self, text: str, wanted: int) -> None:
        status, said = self.shell.run(text)
        assert status == wanted, f"status {status}: {said}"

    def at_the_root(self, text: str) -> None:
        done = subprocess.run(text, shell=True, executable="bash", cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """Stops what serves. A run that ends by itself is waited for."""
        if any("configs/demo.yaml" in text for text in self.serving):
            self.shell.run("wait")
        elif self.serving:
            self.shell.run("kill $(jobs -p); wait")
        self.serving = []


def main(chosen: list[str]) -> int:
    failures, proven = [], []
    every = documents.documents()
    for document in every:
        failures += [f"leads nowhere: {link}" for link in documents.broken_links(document)]
    if unknown := set(chosen) - set(every):
        sys.exit(f"no such documents: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        world = World(pathlib.Path(folder))
        for document in every:
            if chosen and document not in chosen and document not in documents.FIRST:
                continue
            reader = Reader(world, document)
            block = None
            try:
                for command in documents.commands(document):
                    by = rule(command.text)
                    if by is None:
                        failures.append(f"{command}\n    no rule of tests/documents/rules.py covers it")
                        continue
                    # What was started in one block is over in the next.
                    if command.block != block:
                        reader.stop()
                    block = command.block
                    try:
                        reader.prove(command, by)
                        proven.append((command, by))
                        print(f"{by.how:9} {command}{f'  ({by.why})' if by.why else ''}", flush=True)
                    except AssertionError as error:
                        failures.append(f"{command}\n    {str(error)[:1000]}")
                        print(f"FAILED    {command}", flush=True)
                reader.stop()
            finally:
                reader.shell.end()
    counts = {
        how: sum(by.how == how for _, by in proven)
        for how in ("run", "watch", "serve", "fail", "make", "build", "elsewhere")
    }
    print(f"\n{len(proven)} commands: " + ", ".join(f"{count} {how}" for how, count in counts.items()))
    print(
        "not run to their ends here: "
        + "; ".join(sorted({by.why for _, by in proven if by.how in ("fail", "elsewhere")}))
    )
    for failure in failures:
        print(f"\nFAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
