"""Reads the documents: their commands, headings and links."""

import pathlib
import re
import subprocess
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Other documents use the results of these: certificates, and the finished run of the demo.
FIRST = ["docs/security.md", "docs/getting-started.md"]


@dataclass
class Command:
    """A command of a document without its comments. It may span several lines."""

    document: str
    line: int
    # Line numbers of the start of its code block, and of its section.
    block: int
    section: int
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text.splitlines()[0]}"


def repository_files() -> list[str]:
    """Lists all files in git, and new files that git does not ignore."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, text=True, capture_output=True, check=True).stdout.splitlines()
    # During a merge git lists a file more than once.
    return sorted({name for name in names if (ROOT / name).is_file()})


def documents() -> list[str]:
    names = [name for name in repository_files() if name.endswith(".md")]
    return sorted(names, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name))


def blocks(document: str):
    """Yields (number of the first line, lines) of each shell block."""
    inside, first, lines = False, 0, []
    for number, line in enumerate((ROOT / document).read_text().splitlines(), 1):
        if line.startswith("```"):
            if inside:
                yield first, lines
            inside, first, lines = line.strip() == "```sh" and not inside, number + 1, []
        elif inside:
            lines.append(line)


def commands(document: str) -> list[Command]:
    commands_found = []
    numbered = enumerate((ROOT / document).read_text().splitlines(), 1)
    headings = [number for number, line in numbered if line.startswith("## ")]
    for first, lines in blocks(document):
        text, start = "", first
        for number, line in enumerate(lines, first):
            if not text and (not line.strip() or line.startswith("#")):
                continue
            start = start if text else number
            text = f"{text}\n{line}" if text else line
            if is_complete(text):
                section = max((heading for heading in headings if heading < first), default=0)
                commands_found.append(Command(document, start, first, section, re.sub(r"\s+# .*", "", text)))
                text = ""
        if text:
            raise ValueError(f"{document}:{start}: incomplete command {text!r}")
    return commands_found


def is_complete(text: str) -> bool:
    """Returns whether the text is a complete shell command."""
    checked = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    return checked.returncode == 0 and not checked.stderr and not text.endswith("\\")


def prose(document: str) -> str:
    """Returns a document without its code blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / document).read_text(), flags=re.M | re.S)


def anchors(document: str) -> set[str]:
    """Returns the anchors that GitHub creates for the headings."""
    slugs: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(document), flags=re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        repetitions = sum(slug == other or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None for other in slugs)
        slugs.add(f"{slug}-{repetitions}" if repetitions else slug)
    return slugs


def broken_links(document: str) -> list[str]:
    """Returns links to files or headings that do not exist. Does not check external links."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        if not path.exists() or (
            anchor and path.suffix == ".md" and anchor not in anchors(str(path.resolve().relative_to(ROOT)))
        ):
            broken.append(f"{document}: {target}")
    return broken
