"""Runs the documents' commands, in order, and prints how each was proven."""

import collections
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
from rules import CLIENT, Rule, rule
from shell import Shell

PROGRAMS = pathlib.Path(os.environ["PROGRAMS"]).resolve()
# Of runs that are steered.
WORKERS = 4
RUN_FILE = """\
name: {name}
seed: 3
output: {root}{output}
workers: {{ min: 1, max: 4 }}
data:
  karpathy: {{ annotations: {root}runs/demo/world/dataset.json, images: {root}runs/demo/world/images }}
  scenes: {root}runs/demo/world/scenes.json
vocabulary: corpus
evaluator: {{ preset: tiny }}
captioner: {{ preset: tiny, dropout: 0.0 }}
decoding: {{ beams: 3, max_length: 12 }}
stages:
  - {{ name: evaluator, objective: contrastive, steps: 4, batch: 8, optimizer: {{ learning_rate: 1.0e-3 }} }}
  - {{ name: xe, objective: cross_entropy, steps: {steps}, batch: 8, optimizer: {{ learning_rate: 1.0e-3 }} }}
  - {{ name: dico, objective: dico, steps: 50, batch: 4, optimizer: {{ learning_rate: 1.0e-4 }} }}
"""


# Cargo's, which are in one's home unless these say otherwise.
TOOLCHAIN = {"CARGO_HOME": ".cargo", "RUSTUP_HOME": ".rustup"}


class World:
    """What a reader has: the repository, built, with a world, and files called as in the examples."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        for name in documents.repository():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "home").mkdir()
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
        self.write("configs/demo.yaml", RUN_FILE.format(name="demo", root="../", output="runs/demo", steps=4))
        self.write("run.yaml", RUN_FILE.format(name="run", root="", output="runs/run", steps=1_000_000))
        self.photos()
        self.write("captions_val2014.json", '{"1": ["a red ball on the grass"], "2": ["a blue star", "a star"]}')
        self.write("results.json", '{"1": "a red ball", "2": "a blue star"}')

    def photos(self) -> None:
        """A few images with captions beside them, as in docs/data.md."""
        images = sorted((self.folder / "runs/demo/world/images").iterdir())
        for split, chosen in {"train": images[:4], "val": images[4:6]}.items():
            (self.folder / "photos" / split).mkdir(parents=True)
            for image in chosen:
                shutil.copy(image, self.folder / "photos" / split)
                self.write(f"photos/{split}/{image.stem}.txt", "A drawing.\nA few shapes\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def shell(self) -> Shell:
        kept = {name: os.environ[name] for name in ("LIBTORCH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")}
        home = pathlib.Path.home()
        kept |= {name: os.environ.get(name, str(home / place)) for name, place in TOOLCHAIN.items()}
        own = {"HOME": f"{self.folder}/home", "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        return Shell(self.folder, kept | own | {"KUBECONFIG": "/dev/null", "NO_COLOR": "1"})


class Reader:
    """Does what a document says."""

    def __init__(self, world: World):
        self.world = world
        self.block = self.section = 0
        self.begin()

    def begin(self) -> None:
        self.shell = self.world.shell()
        # An answer that says no is a failure, too.
        self.shell.run('curl() { command curl --fail --silent --show-error "$@"; }')

    def prove(self, command: Command, by: Rule) -> None:
        """Raises AssertionError if it cannot be."""
        text = command.text.replace(*by.instead)
        self.come_to(command)
        if by.how != "fail" and re.search(CLIENT, text):
            self.have_a_run()
        match by.how:
            case "run":
                self.expect(text, by, 0)
            case "watch":
                status, said = self.shell.run(f"timeout --signal INT 3 {text}")
                # A run that is over before that ends it, too.
                assert status == 124 or (status == 0 and "finished" in said), f"status {status}: {said}"
            case "fail":
                self.expect(text, by)
            case "either":
                self.expect(text, by, 0, otherwise=True)
            case "serve":
                if "coordinator serve" in text:
                    self.stop()
                self.shell.background(text, by.says)
            case "make":
                self.at_the_root(f"make --dry-run {text.removeprefix('make')}")
            case "build":
                self.at_the_root(f"RUSTC_BOOTSTRAP=1 {text} --locked --offline -Z unstable-options --unit-graph")
            case "elsewhere":
                for word in shlex.split(text):
                    if re.match(r"(deploy|configs|tests|tools|docs)/", word):
                        assert list(ROOT.glob(word)), f"{word} is not there"
        if inner := re.search(r"^(?:kubectl|docker) .* exec .*((?:coordinator|worker) [a-z].*)", text):
            status, said = self.shell.run(inner[1])
            assert status != 2, f"{inner[1]}: {said}"

    def expect(self, text: str, by: Rule, wanted: int | None = None, otherwise: bool = False) -> None:
        status, said = self.shell.run(text)
        failed_so = status not in (0, 2) and re.search(by.says, said) is not None
        assert status == wanted or ((wanted is None or otherwise) and failed_so), f"status {status}: {said}"

    def jobs(self) -> str:
        return self.shell.run("jobs -r")[1]

    def come_to(self, command: Command) -> None:
        """At the end of its block the demo's run is waited for; at the end of a section any other is stopped."""
        if command.block != self.block and "configs/demo.yaml" in self.jobs():
            self.shell.run("wait")
        if command.section != self.section:
            self.stop()
        self.block, self.section = command.block, command.section

    def stop(self) -> None:
        """Nothing of a run goes over to the next one: it may have been paused, or stopped."""
        self.shell.run("kill $(jobs -p); wait; rm -rf runs/run")

    def have_a_run(self) -> None:
        """Commands of clients find a run with workers, also where the section has not started them."""
        jobs = self.jobs()
        if "coordinator serve" not in jobs:
            self.shell.background("coordinator serve --config run.yaml", "listening on")
        if "worker join" not in jobs:
            for rank in range(WORKERS):
                self.shell.background(f"worker join --rank {rank}", "joined")
            there = f"curl http://127.0.0.1:7071/metrics 2> /dev/null | grep -q '^dico_members.* {WORKERS}$'"
            self.shell.run(f"until {there}; do sleep 0.1; done")

    def at_the_root(self, text: str) -> None:
        done = subprocess.run(text, shell=True, executable="bash", cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


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
            reader = Reader(world)
            try:
                for command in documents.commands(document):
                    by = rule(command.text)
                    try:
                        assert by is not None, "no rule of tests/documents/rules.py covers it"
                        reader.prove(command, by)
                        proven.append(by)
                        print(f"{command}\n    {by}", flush=True)
                    except (AssertionError, TimeoutError) as error:
                        if isinstance(error, TimeoutError):
                            reader.shell.end()
                            reader.begin()
                        failures.append(f"{command}\n    {str(error)[-1000:]}")
                        print(f"{command}\n    FAILED", flush=True)
            finally:
                reader.shell.end()
    counts = collections.Counter(by.how for by in proven)
    print(f"\n{len(proven)} commands: " + ", ".join(f"{count} {how}" for how, count in counts.most_common()))
    for failure in failures:
        print(f"\nFAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
