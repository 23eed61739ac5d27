"""Expected METEOR of captions of our own, or of a file of captions.

Runs METEOR 1.5 as pycocoevalcap does (`-l en -norm`), and besides with settings that a test without its tables can
follow. Needs the package pycocoevalcap 1.2 and Java, nothing else:

    python -m venv target/parity/scoring-venv
    target/parity/scoring-venv/bin/pip install --no-deps pycocoevalcap==1.2
    target/parity/scoring-venv/bin/python tests/parity/meteor.py --out tests/golden/scoring
    target/parity/scoring-venv/bin/python tests/parity/meteor.py --out target/parity/full/scoring \\
        --size full --captions FILE

FILE has a caption a line: an image's name, `#` and a number, a tab, the caption; five captions an image, as Flickr8k
comes. Nothing of it is to be committed.
"""

import argparse
import gzip
import importlib.metadata
import json
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pycocoevalcap.meteor import meteor
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from meteor_captions import AWKWARD, SCENES

SEED = 20141
JAR = Path(meteor.__file__).parent / meteor.METEOR_JAR
MADE_UP = Path(__file__).parent.parent / "golden" / "scoring" / "meteor"

# Pieces that the jar's own normaliser handles, in captions that are not tokenised before. Without words of its list of
# abbreviations, which only one of the runs has on both sides.
PIECES = (
    "a b dog dogs don't it's 's 't n't ' '' ` `` ‘ ’ “ ” \" - -- – — . .. ... .... , ,, ; : ! ? & @ # % / ( ) [ ] * "
    "1 2 10 1,000 1.5 3:45 7's 1990's o'clock a-b-c t-shirt x-1-y u.s. u.s.a i.e. e.g. etc. no. no.7 "
    "st. 3. 3.5. x.. ..y a,b a,b,c ,5 5, -5 +5 é café naïve straße žena Привет σας 日本 ½ ² £5 €5 $5 5% a&b a/b a_b "
    "can't've y'all rock'n'roll 'tis dogs' x'y'z 1'2 2's s's 's's - 'a' \"a\" (a) … • → ~ ^ \\ | \u00a0 \u3000 \u2009"
).split(" ")

Group = dict[str, object]


def settings(folder: Path) -> dict[str, list[str]]:
    """Arguments of each run. With equal weights of content and function words, it does not matter which are which."""
    for name in ("synsets", "exceptions", "relations"):
        source = MADE_UP / f"english.{name}"
        (folder / source.name).write_text(source.read_text() if source.exists() else "")
    table = folder / "paraphrase-en.gz"
    table.write_bytes(gzip.compress((MADE_UP / "paraphrases").read_bytes()))
    made_up = ["-s", str(MADE_UP / "english.words"), "-d", str(folder), "-a", str(table)]
    return {
        "all": [],
        "exact and stem": ["-m", "exact stem", "-w", "1.0 0.6", "-p", "0.85 0.2 0.6 0.5"],
        "made up": made_up,
    }


def score(groups: list[Group], arguments: list[str]) -> dict[str, object]:
    """Scores of all groups and of them together."""
    command = ["java", "-Xmx2G", "-jar", JAR.name, "-", "-", "-stdio", "-l", "en", "-norm", *arguments]
    with subprocess.Popen(command, cwd=JAR.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def ask(line: str) -> str:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            return process.stdout.readline().decode().strip()

        # The order of captions in a line, and what is done to a candidate, as pycocoevalcap does it.
        candidates = [group["candidate"].replace("|||", "").replace("  ", " ") for group in groups]
        statistics = [
            ask(" ||| ".join(["SCORE", " ||| ".join(group["references"]), candidate]))
            for group, candidate in zip(groups, candidates)
        ]
        values = [float(ask(" ||| ".join(["EVAL", *statistics])))]
        values += [float(process.stdout.readline()) for _ in groups]
        process.stdin.close()
    return {"items": values[:-1], "corpus": values[-1]}


def tokenised(groups: list[Group]) -> list[Group]:
    """With the captions as the tokenizer of pycocoevalcap makes them. It reads line by line."""
    texts = [text for group in groups for text in [group["candidate"], *group["references"]]]
    lines = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
    tokens = iter([lines[index][0] for index in range(len(texts))])
    return [
        {"candidate": next(tokens), "references": [next(tokens) for _ in group["references"]]} for group in groups
    ]


def repeated(words: list[str], draw: random.Random) -> list[str]:
    """As a captioner stutters: a few words again and again, and more words than the beam is wide."""
    start = draw.randrange(len(words))
    phrase = words[start : start + draw.randint(1, 4)]
    return (phrase + ["and"] * draw.randint(0, 1)) * draw.randint(2, 12)


def shuffled(words: list[str], draw: random.Random) -> list[str]:
    return draw.sample(words, len(words))


def cut(words: list[str], draw: random.Random) -> list[str]:
    return words[: draw.randint(1, len(words))]


def doubled(words: list[str], draw: random.Random) -> list[str]:
    """The same caption twice, the second time in another order."""
    return words + shuffled(words, draw)


def groups_of(scenes: list[list[str]], draw: random.Random) -> Iterator[Group]:
    """A caption of each scene against the others of the scene: as it is, changed, or from elsewhere."""
    for index, (first, *others) in enumerate(scenes):
        yield {"candidate": first, "references": others}
        yield {"candidate": draw.choice(scenes[index - 1]), "references": others}
        change = (repeated, shuffled, cut, doubled)[index % 4]
        yield {"candidate": " ".join(change(first.split(), draw)), "references": others}
        # Long references, where many words recur.
        if index % 5 == 0:
            long = " ".join([*others, first])
            yield {"candidate": " ".join(scenes[index - 1] + [first]), "references": [long, others[0]]}
            yield {"candidate": " ".join(repeated(first.split(), draw)), "references": [long]}


def odd_groups(count: int, draw: random.Random) -> Iterator[Group]:
    """Captions of pieces, some joined."""

    def text() -> str:
        pieces = draw.choices(PIECES, k=draw.randint(1, 9))
        return "".join(piece + draw.choice((" ", " ", "")) for piece in pieces).strip()

    for _ in range(count):
        references = [text() for _ in range(draw.randint(1, 3))]
        candidate = text() if draw.random() < 0.3 else " ".join(shuffled(references[0].split(" "), draw))
        yield {"candidate": candidate, "references": references}


def images(path: Path) -> list[list[str]]:
    """The captions of each image."""
    captions: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        name, _, caption = line.partition("\t")
        captions.setdefault(name.rpartition("#")[0], []).append(caption)
    return list(captions.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that the results are written to")
    parser.add_argument("--size", choices=("golden", "full"), default="golden")
    parser.add_argument("--captions", type=Path, help="file of captions, for the full size")
    arguments = parser.parse_args()
    draw = random.Random(SEED)
    if arguments.size == "golden":
        scenes, odd = SCENES, 0
    else:
        scenes, odd = draw.sample(images(arguments.captions), 1000) + SCENES, 400
    awkward = [{"candidate": candidate, "references": references} for candidate, *references in AWKWARD]
    groups = tokenised([*groups_of(scenes, draw), *awkward])
    groups += odd_groups(odd, draw)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: score(groups, options) for name, options in settings(Path(folder)).items()}
    arguments.out.mkdir(parents=True, exist_ok=True)
    versions = {"pycocoevalcap": importlib.metadata.version("pycocoevalcap"), "meteor": JAR.stem}
    result = {"versions": versions, "groups": groups, "runs": runs}
    text = json.dumps(result, ensure_ascii=False, separators=(",", ":")).replace('{"candidate"', '\n{"candidate"')
    (arguments.out / "meteor.json").write_text(text + "\n")
    for name, run in runs.items():
        print(f"{name}: {len(groups)} groups, {run['corpus']:.6f} together, {min(run['items']):.4f} the lowest")


if __name__ == "__main__":
    main()
