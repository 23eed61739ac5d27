"""How each command of the documents is proven.

The first rule whose pattern is found in a command is its rule; a command without one fails the test.
"""

import re
from dataclasses import dataclass

PROGRAM = r"^(target/(release|debug)/)?"


@dataclass
class Rule:
    """How commands that match a pattern are proven.

    run         the command is run and must succeed
    watch       it is run and must not end before it is interrupted three seconds later, or the run is finished
    serve       it is run in the background and must print `says`; the next `coordinator serve`, or the end of the
                section, stops it
    fail        it is run and must fail, for the reason in `why`, with output that matches `says`; a wrong command
                line (status 2) does not count
    either      it is run and must succeed, or fail as above
    make        its target exists, and all prerequisites: `make --dry-run`
    build       cargo plans it
    elsewhere   another test runs it, which `why` names; here only the files that it names must exist
    """

    pattern: str
    how: str
    says: str = ""
    why: str = ""
    # Replaces a part of the command with a faster one.
    instead: tuple[str, str] = ("", "")

    def __str__(self) -> str:
        return f"{self.how}{f' ({self.why})' if self.why else ''}"


# What speaks to a coordinator: there has to be one, with workers.
CLIENT = (
    PROGRAM + r"coordinator (status|watch|pause|resume|checkpoint|evaluate|drain|stop)\b|^curl\b.*127\.0\.0\.1:7071"
)


NO_GPU = "computing on GPUs needs|no CUDA|CUDA driver"

RULES = [
    # GPUs.
    Rule(r"^for gpu in|^\(cd tests/parity", "elsewhere", why="a machine with GPUs"),
    Rule(PROGRAM + r"worker join\b.*--device cuda", "fail", says=NO_GPU, why="there is no GPU here"),
    Rule(PROGRAM + r"worker\b.*--device cuda", "either", says=NO_GPU, why="where there is no GPU"),
    # Daemons.
    Rule(PROGRAM + r"coordinator serve\b", "serve", says="listening on"),
    Rule(PROGRAM + r"worker join\b", "serve", says="joined"),
    # Before what else they are about.
    Rule(r"^(\w+=\S+ )*(sbatch|srun|squeue|scancel|scontrol|sinfo)\b", "elsewhere", why="tests/slurm"),
    Rule(r"\$JOB\b", "fail", says="No such file", why="there is no job here; tests/slurm"),
    # What needs files that nobody may hand on, or a service that is not here.
    Rule(
        PROGRAM + r"worker (score|correlate)\b[\s\S]*clip_ViT-B-32\.pth",
        "fail",
        says=r"clip_ViT-B-32\.pth|flickr8k\.json",
        why="the authors' evaluators are not here",
    ),
    Rule(
        r"\bcoco-(vit-l14|vit-b32|rn50)\.yaml",
        "fail",
        says=r"data/coco|weights/|data/features",
        why="COCO and OpenAI's weights are not here",
    ),
    Rule(r"worker export --from runs/coco", "fail", says=r"runs/coco", why="nobody has trained it here"),
    Rule(r"worker export-evaluator --from runs/pac", "fail", says=r"runs/pac", why="nobody has trained it here"),
    Rule(
        r"dico-ViTL14|models/dico-vit-l14",
        "fail",
        says=r"dico-ViTL14|models/dico-vit-l14",
        why="the authors' captioner is not here",
    ),
    Rule(PROGRAM + r"coordinator resume\b", "either", says="not paused", why="where the run is not paused"),
    # Programs.
    Rule(PROGRAM + r"worker bench step\b", "run", instead=("--batch 8", "--batch 1"), why="with one image a step"),
    Rule(PROGRAM + r"coordinator watch --json \| head", "run"),
    Rule(PROGRAM + r"coordinator tensorboard .*--follow", "run", instead=(" &", ""), why="of a run that is finished"),
    Rule(PROGRAM + r"coordinator (watch|events .*--follow)", "watch"),
    Rule(
        PROGRAM + r"load-generator\b",
        "run",
        instead=("--workers 10000 --steps 200", "--workers 20 --steps 5"),
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
    # The usual tools.
    Rule(r"^curl\b.*127\.0\.0\.1", "run"),
    Rule(r"^(\w+=\S+ )*(openssl|mkdir|cp|tar|export|deploy/make-secrets)\b", "run"),
    Rule(r"^cat > \S+ <<", "run"),
    Rule(r"^\w+=", "run"),
    Rule(r"^\w+\(\) \{", "run"),
    # It is defined in docs/security.md.
    Rule(r"^new\b", "run"),
    Rule(r"^kubectl kustomize\b", "run"),
    Rule(
        r"^kubectl\b",
        "fail",
        says=r"refused|no configuration has been provided",
        why="there is no cluster here; tests/deploy",
    ),
    Rule(r"^docker build\b", "fail", says="Docker daemon|docker: command not found", why="there is no engine here; tests/deploy"),
    Rule(r"^docker compose\b", "elsewhere", why="tests/deploy/composition.py"),
    Rule(r"^(prometheus|promtool|grafana)\b", "elsewhere", why="tests/prometheus"),
    Rule(r"^(sudo )?(apt-get|apt|pip|pip3|git clone|rustup)\b", "elsewhere", why="the network's"),
    Rule(r"^nvidia-smi\b", "elsewhere", why="the driver's"),
    Rule(r"^(ssh|scp|kind|minikube)\b", "elsewhere", why="another machine's"),
]


def rule(text: str) -> Rule | None:
    return next((rule for rule in RULES if re.search(rule.pattern, text, flags=re.M)), None)
