"""What deploy/Containerfile says, stage by stage."""

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
    """(instruction, the rest of its line); lines that end with a backslash go on."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        yield line.split(maxsplit=1)


def stages() -> dict[str, Stage]:
    """Every stage, with what it has of the stages that it is made from."""
    all_of_them: dict[str, Stage] = {}
    stage = Stage("", "")
    for instruction, rest in instructions((ROOT / "deploy/Containerfile").read_text()):
        match instruction:
            case "FROM":
                base, _, name = rest.split()
                parent = all_of_them.get(base, Stage("", base))
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
                all_of_them[name] = stage
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
                raise ValueError(f"deploy/Containerfile: {other}: say in tests/deploy/containerfile.py what it means")
    return all_of_them


def project_version() -> str:
    """The project's version, which images are tagged with."""
    return tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
