"""Runs the documents' commands in order, and prints how each was verified."""

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
from rules import CLIENT_COMMAND, Rule, find_rule
from shell import Shell

PROGRAMS = pathlib.Path(os.environ["PROGRAMS"]).resolve()
# Workers of the run that client commands control.
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


# Cargo's environment variables -> default folders in the home folder.
TOOLCHAIN = {"CARGO_HOME": ".cargo", "RUSTUP_HOME": ".rustup"}


class Checkout:
    """A reader's checkout: the built repository, a data set, and files named as in the examples."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        for name in documents.repository_files():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        (folder / "home").mkdir()
        for subfolder in ("target/release", "target/debug", "bin"):
            (folder / subfolder).mkdir(parents=True)
            for program in PROGRAMS.iterdir():
                if program.is_file() and os.access(program, os.X_OK):
                    (folder / subfolder / program.name).symlink_to(program)
        subprocess.run(
            [PROGRAMS / "worker", "synthesize", "--out", folder / "runs/demo/world", "--images", "60", "--seed", "7"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        # The demo ends within a minute. The other run does not end by itself.
        self.write("configs/demo.yaml", RUN_FILE.format(name="demo", root="../", output="runs/demo", steps=4))
        self.write("run.yaml", RUN_FILE.format(name="run", root="", output="runs/run", steps=1_000_000))
        self.write_photos()
        self.write("captions_val2014.json", '{"1": ["a red ball on the grass"], "2": ["a blue star", "a star"]}')
        self.write("results.json", '{"1": "a red ball", "2": "a blue star"}')

    def write_photos(self) -> None:
        """Writes a few images with captions beside them, as in docs/data.md."""
        images = sorted((self.folder / "runs/demo/world/images").iterdir())
        for split, selected in {"train": images[:4], "val": images[4:6]}.items():
            (self.folder / "photos" / split).mkdir(parents=True)
            for image in selected:
                shutil.copy(image, self.folder / "photos" / split)
                self.write(f"photos/{split}/{image.stem}.txt", "A drawing.\nA few shapes\n")

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def shell(self) -> Shell:
        environment = {name: os.environ[name] for name in ("LIBTORCH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS")}
        home = pathlib.Path.home()
        environment |= {name: os.environ.get(name, str(home / default)) for name, default in TOOLCHAIN.items()}
        own = {"HOME": f"{self.folder}/home", "PATH": f"{self.folder}/bin:{os.environ['PATH']}"}
        return Shell(self.folder, environment | own | {"KUBECONFIG": "/dev/null", "NO_COLOR": "1"})


class Reader:
    """Runs the commands of one document in a shell."""

    def __init__(self, checkout: Checkout):
        self.checkout = checkout
        self.block = self.section = 0
        self.start_shell()

    def start_shell(self) -> None:
        self.shell = self.checkout.shell()
        # HTTP error responses are failures, too.
        self.shell.run('curl() { command curl --fail --silent --show-error "$@"; }')

    def verify(self, command: Command, rule: Rule) -> None:
        """Verifies a command by its rule. Raises AssertionError if that fails."""
        text = command.text.replace(*rule.replacement)
        self.enter_section(command)
        if rule.how != "fail" and re.search(CLIENT_COMMAND, text):
            self.ensure_run()
        match rule.how:
            case "run":
                self.expect(text, rule, 0)
            case "watch":
                status, output = self.shell.run(f"timeout --signal INT 3 {text}")
                # The command also ends when the run finishes earlier.
                assert status == 124 or (status == 0 and "finished" in output), f"status {status}: {output}"
            case "fail":
                self.expect(text, rule)
            case "either":
                self.expect(text, rule, 0, may_fail=True)
            case "serve":
                if "coordinator serve" in text:
                    self.stop()
                self.shell.background(text, rule.expected_output)
            case "make":
                self.run_in_repository(f"make --dry-run {text.removeprefix('make')}")
            case "build":
                self.run_in_repository(f"RUSTC_BOOTSTRAP=1 {text} --locked --offline -Z unstable-options --unit-graph")
            case "elsewhere":
                for word in shlex.split(text):
                    if re.match(r"(deploy|configs|tests|tools|docs)/", word):
                        assert list(ROOT.glob(word)), f"{word} does not exist"
        if inner_command := re.search(r"^(?:kubectl|docker) .* exec .*((?:coordinator|worker) [a-z].*)", text):
            status, output = self.shell.run(inner_command[1])
            assert status != 2, f"{inner_command[1]}: {output}"

    def expect(self, text: str, rule: Rule, expected_status: int | None = None, may_fail: bool = False) -> None:
        status, output = self.shell.run(text)
        failed_as_expected = status not in (0, 2) and re.search(rule.expected_output, output) is not None
        assert status == expected_status or ((expected_status is None or may_fail) and failed_as_expected), f"status {status}: {output}"

    def jobs(self) -> str:
        return self.shell.run("jobs -r")[1]

    def enter_section(self, command: Command) -> None:
        """Waits for the demo at the end of its block; stops other runs at the end of a section."""
        if command.block != self.block and "configs/demo.yaml" in self.jobs():
            self.shell.run("wait")
        if command.section != self.section:
            self.stop()
        self.block, self.section = command.block, command.section

    def stop(self) -> None:
        """Stops the run and deletes its state, so that the next run does not resume it."""
        self.shell.run("kill $(jobs -p); wait; rm -rf runs/run")

    def ensure_run(self) -> None:
        """Starts a coordinator and workers unless the section has started them."""
        jobs = self.jobs()
        if "coordinator serve" not in jobs:
            self.shell.background("coordinator serve --config run.yaml", "listening on")
        if "worker join" not in jobs:
            for worker_id in range(WORKERS):
                self.shell.background(f"worker join --rank {worker_id}", "joined")
            all_joined = f"curl http://127.0.0.1:7071/metrics 2> /dev/null | grep -q '^dico_members.* {WORKERS}$'"
            self.shell.run(f"until {all_joined}; do sleep 0.1; done")

    def run_in_repository(self, text: str) -> None:
        result = subprocess.run(text, shell=True, executable="bash", cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr


def main(selected: list[str]) -> int:
    failures, verified = [], []
    all_documents = documents.documents()
    for document in all_documents:
        failures += [f"broken link: {link}" for link in documents.broken_links(document)]
    if unknown := set(selected) - set(all_documents):
        sys.exit(f"unknown documents: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout(pathlib.Path(folder))
        for document in all_documents:
            if selected and document not in selected and document not in documents.FIRST:
                continue
            reader = Reader(checkout)
            try:
                for command in documents.commands(document):
                    rule = find_rule(command.text)
                    try:
                        assert rule is not None, "no rule in tests/docs/rules.py matches the command"
                        reader.verify(command, rule)
                        verified.append(rule)
                        print(f"{command}\n    {rule}", flush=True)
                    except (AssertionError, TimeoutError) as error:
                        if isinstance(error, TimeoutError):
                            reader.shell.end()
                            reader.start_shell()
                        failures.append(f"{command}\n    {str(error)[-1000:]}")
                        print(f"{command}\n    FAILED", flush=True)
            finally:
                reader.shell.end()
    counts = collections.Counter(rule.how for rule in verified)
    print(f"\n{len(verified)} commands: " + ", ".join(f"{count} {how}" for how, count in counts.most_common()))
    for failure in failures:
        print(f"\nFAILED {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
