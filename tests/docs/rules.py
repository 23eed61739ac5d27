"""Rules that say how each command of the documents is verified.

The first rule whose pattern matches a command applies. A command without a rule fails the test.
"""

import re
from dataclasses import dataclass

PROGRAM = r"^(target/(release|debug)/)?"


@dataclass
class Rule:
    """How commands that match a pattern are verified. Values of `how`:

    run         the command must succeed
    watch       the command runs until it is interrupted after three seconds, or until the run is
                finished
    serve       the command runs in the background and must print `expected_output`; the next
                `coordinator serve`, or the end of the section, stops it
    fail        the command must fail for the reason in `why`, with output that matches
                `expected_output`; a wrong command line (status 2) does not count
    either      the command must succeed, or fail as above
    make        the target and all its prerequisites exist: `make --dry-run`
    build       cargo can plan the build
    elsewhere   another test runs the command, which `why` names; here only the files that the
                command names must exist
    """

    pattern: str
    how: str
    expected_output: str = ""
    why: str = ""
    # (part of the command, replacement that runs faster).
    replacement: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        return f"{self.how}{f' ({self.why})' if self.why else ''}"


# Commands of clients, which require a coordinator with workers.
CLIENT_COMMAND = (
    PROGRAM + r"coordinator (status|watch|pause|resume|checkpoint|evaluate|drain|stop)\b|^curl\b.*127\.0\.0\.1:7071"
)


NO_GPU = "computing on GPUs needs|no CUDA|CUDA driver"

RULES = [
    # GPUs.
    Rule(r"^for gpu in|^\(cd tests/parity", "elsewhere", why="a machine with GPUs"),
    Rule(PROGRAM + r"worker join\b.*--device cuda", "fail", expected_output=NO_GPU, why="this machine has no GPU"),
    Rule(PROGRAM + r"worker\b.*--device cuda", "either", expected_output=NO_GPU, why="on a machine without a GPU"),
    # Daemons.
    Rule(PROGRAM + r"coordinator serve\b", "serve", expected_output="listening on"),
    Rule(PROGRAM + r"worker join\b", "serve", expected_output="joined"),
    # Before the rules for the programs that these commands start.
    Rule(r"^(\w+=\S+ )*(sbatch|srun|squeue|scancel|scontrol|sinfo)\b", "elsewhere", why="tests/slurm"),
    Rule(r"\$JOB\b", "fail", expected_output="No such file", why="no Slurm job runs here; tests/slurm"),
    # Commands that need files which must not be redistributed, or a service that is not available.
    Rule(
        PROGRAM + r"worker (score|correlate)\b[\s\S]*clip_ViT-B-32\.pth",
        "fail",
        expected_output=r"clip_ViT-B-32\.pth|flickr8k\.json",
        why="the authors' evaluators are not available",
    ),
    Rule(
        r"\bcoco-(vit-l14|vit-b32|rn50)\.yaml",
        "fail",
        expected_output=r"data/coco|weights/|data/features",
        why="COCO and OpenAI's weights are not available",
    ),
    Rule(r"worker export --from runs/coco", "fail", expected_output=r"runs/coco", why="the test does not train this run"),
    Rule(r"worker export-evaluator --from runs/pac", "fail", expected_output=r"runs/pac", why="the test does not train this run"),
    Rule(
        r"dico-ViTL14|models/dico-vit-l14",
        "fail",
        expected_output=r"dico-ViTL14|models/dico-vit-l14",
        why="the authors' captioner is not available",
    ),
    Rule(PROGRAM + r"coordinator resume\b", "either", expected_output="not paused", why="unless the run is paused"),
    # Programs.
    Rule(PROGRAM + r"worker bench step\b", "run", replacement=("--batch 8", "--batch 1"), why="with one image per step"),
    Rule(PROGRAM + r"coordinator watch --json \| head", "run"),
    Rule(PROGRAM + r"coordinator tensorboard .*--follow", "run", replacement=(" &", ""), why="with a finished run"),
    Rule(PROGRAM + r"coordinator (watch|events .*--follow)", "watch"),
    Rule(
        PROGRAM + r"load-generator\b",
        "run",
        replacement=("--workers 10000 --steps 200", "--workers 20 --steps 5"),
        why="with fewer workers",
    ),
    Rule(PROGRAM + r"(coordinator|worker)\b", "run"),
    Rule(PROGRAM + r"chaos\b", "elsewhere", why="tests/end_to_end/chaos.rs"),
    Rule(r"^cargo build\b", "build"),
    Rule(r"^cargo test\b", "elsewhere", why="make test"),
    Rule(r"^cargo run --bin coordinator -- schema\b", "elsewhere", why="a unit test of crates/config/src/reference.rs"),
    Rule(r"^tensorboard\b", "elsewhere", why="tests/tensorboard"),
    Rule(r"^make\b", "make"),
    Rule(r"^tests/\w+/\w+", "elsewhere", why="its target of the Makefile"),
    # Common tools.
    Rule(r"^curl\b.*127\.0\.0\.1", "run"),
    Rule(r"^(\w+=\S+ )*(openssl|mkdir|cp|tar|export|deploy/make-secrets)\b", "run"),
    Rule(r"^cat > \S+ <<", "run"),
    Rule(r"^\w+=", "run"),
    Rule(r"^\w+\(\) \{", "run"),
    # docs/security.md defines this shell function.
    Rule(r"^new\b", "run"),
    Rule(r"^kubectl kustomize\b", "run"),
    Rule(
        r"^kubectl\b",
        "fail",
        expected_output=r"refused|no configuration has been provided",
        why="no cluster is available; tests/deploy",
    ),
    Rule(r"^docker build\b", "fail", expected_output="Docker daemon|docker: command not found", why="no container engine is available; tests/deploy"),
    Rule(r"^docker compose\b", "elsewhere", why="tests/deploy/compose.py"),
    Rule(r"^(prometheus|promtool|grafana)\b", "elsewhere", why="tests/prometheus"),
    Rule(r"^(sudo )?(apt-get|apt|pip|pip3|git clone|rustup)\b", "elsewhere", why="it needs the network"),
    Rule(r"^nvidia-smi\b", "elsewhere", why="it needs the GPU driver"),
    Rule(r"^(ssh|scp|kind|minikube)\b", "elsewhere", why="it needs another machine"),
]


def find_rule(text: str) -> Rule | None:
    return next((rule for rule in RULES if re.search(rule.pattern, text, flags=re.M)), None)
