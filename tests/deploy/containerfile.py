"""Parses the stages of deploy/Containerfile."""

import json
import pathlib
import shlex
import tomllib
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    name: str
    base: str
    user: str = ""
    entrypoint: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    ports: list[str] = field(default_factory=list)
    run: list[str] = field(default_factory=list)
    # (stage or "", source, target)
    copied: list[tuple[str, str, str]] = field(default_factory=list)


def instructions(text: str):
    """Yields (instruction, arguments) of each instruction, with continuation lines joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        yield line.split(maxsplit=1)


def stages() -> dict[str, Stage]:
    """Returns all stages by name. A stage includes the settings of its base stage."""
    stages_by_name: dict[str, Stage] = {}
    stage = Stage("", "")
    for instruction, rest in instructions((ROOT / "deploy/Containerfile").read_text()):
        match instruction:
            case "FROM":
                base, _, name = rest.split()
                parent = stages_by_name.get(base, Stage("", base))
                stage = Stage(
                    name,
                    parent.base,
                    parent.user,
                    parent.entrypoint,
                    dict(parent.environment),
                    list(parent.ports),
                    list(parent.run),
                    list(parent.copied),
                )
                stages_by_name[name] = stage
            case "USER":
                stage.user = rest
            case "ENTRYPOINT":
                stage.entrypoint = json.loads(rest)
            case "ENV":
                stage.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))
            case "EXPOSE":
                stage.ports += rest.split()
            case "RUN":
                stage.run.append(" ".join(word for word in rest.split() if not word.startswith("--mount=")))
            case "COPY":
                words = rest.split()
                origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else ""
                stage.copied += [(origin, source, words[-1]) for source in words[:-1]]
            case "WORKDIR":
                pass
            case other:
                raise ValueError(f"deploy/Containerfile: unknown instruction {other}: add it to tests/deploy/containerfile.py")
    return stages_by_name


def project_version() -> str:
    """Returns the project's version, which is the tag of the images."""
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
