"""Expected METEOR scores of this project's captions, or of a file of captions.

Runs METEOR 1.5 like pycocoevalcap (`-l en -norm`), and with settings that tests without METEOR's
tables can reproduce. Needs only the package pycocoevalcap 1.2 and Java:

    python -m venv target/parity/scoring-venv
    target/parity/scoring-venv/bin/pip install --no-deps pycocoevalcap==1.2
    target/parity/scoring-venv/bin/python tests/parity/meteor.py --out tests/golden/scoring
    target/parity/scoring-venv/bin/python tests/parity/meteor.py --out target/parity/full/scoring \\
        --size full --captions FILE

FILE has one caption per line in Flickr8k's format: image name, `#`, number, tab, caption; five
captions per image. No part of it may be committed.
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
TEST_TABLES = Path(__file__).parent.parent / "golden" / "scoring" / "meteor"

# Words and punctuation for captions that only METEOR's own normaliser tokenises. Omits words of its
# list of abbreviations, which only one of the runs has on both sides.
PIECES = (
    "a b dog dogs don't it's 's 't n't ' '' ` `` ‘ ’ “ ” \" - -- – — . .. ... .... , ,, ; : ! ? & @ # % / ( ) [ ] * "
    "1 2 10 1,000 1.5 3:45 7's 1990's o'clock a-b-c t-shirt x-1-y u.s. u.s.a i.e. e.g. etc. no. no.7 "
    "st. 3. 3.5. x.. ..y a,b a,b,c ,5 5, -5 +5 é café naïve straße žena Привет σας 日本 ½ ² £5 €5 $5 5% a&b a/b a_b "
    "can't've y'all rock'n'roll 'tis dogs' x'y'z 1'2 2's s's 's's - 'a' \"a\" (a) … • → ~ ^ \\ | \u00a0 \u3000 \u2009"
).split(" ")

Group = dict[str, object]


def settings(folder: Path) -> dict[str, list[str]]:
    """Returns METEOR's arguments of each run.

    `exact and stem` weights content and function words equally, so it needs no list of function
    words.
    """
    for name in ("synsets", "exceptions", "relations"):
        source = TEST_TABLES / f"english.{name}"
        (folder / source.name).write_text(source.read_text() if source.exists() else "")
    table = folder / "paraphrase-en.gz"
    table.write_bytes(gzip.compress((TEST_TABLES / "paraphrases").read_bytes()))
    table_options = ["-s", str(TEST_TABLES / "english.words"), "-d", str(folder), "-a", str(table)]
    return {
        "all": [],
        "exact and stem": ["-m", "exact stem", "-w", "1.0 0.6", "-p", "0.85 0.2 0.6 0.5"],
        "made up": table_options,
    }


def score(groups: list[Group], arguments: list[str]) -> dict[str, object]:
    """Returns the scores of all groups, and the corpus score."""
    command = ["java", "-Xmx2G", "-jar", JAR.name, "-", "-", "-stdio", "-l", "en", "-norm", *arguments]
    with subprocess.Popen(command, cwd=JAR.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:

        def request(line: str) -> str:
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            return process.stdout.readline().decode().strip()

        # The order of captions in a line, and the replacements in candidates, are pycocoevalcap's.
        candidates = [group["candidate"].replace("|||", "").replace("  ", " ") for group in groups]
        statistics = [
            request(" ||| ".join(["SCORE", " ||| ".join(group["references"]), candidate]))
            for group, candidate in zip(groups, candidates)
        ]
        values = [float(request(" ||| ".join(["EVAL", *statistics])))]
        values += [float(process.stdout.readline()) for _ in groups]
        process.stdin.close()
    return {"items": values[:-1], "corpus": values[-1]}


def tokenise(groups: list[Group]) -> list[Group]:
    """Tokenises the captions with pycocoevalcap's tokenizer, which reads line by line."""
    texts = [text for group in groups for text in [group["candidate"], *group["references"]]]
    lines = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(texts)})
    tokens = iter([lines[index][0] for index in range(len(texts))])
    return [
        {"candidate": next(tokens), "references": [next(tokens) for _ in group["references"]]} for group in groups
    ]


def repeat_words(words: list[str], rng: random.Random) -> list[str]:
    """Repeats a few words, like a degenerate captioner, beyond the width of METEOR's beam."""
    start = rng.randrange(len(words))
    phrase = words[start : start + rng.randint(1, 4)]
    return (phrase + ["and"] * rng.randint(0, 1)) * rng.randint(2, 12)


def shuffle_words(words: list[str], rng: random.Random) -> list[str]:
    return rng.sample(words, len(words))


def cut_caption(words: list[str], rng: random.Random) -> list[str]:
    return words[: rng.randint(1, len(words))]


def double_caption(words: list[str], rng: random.Random) -> list[str]:
    """Repeats the caption in another order."""
    return words + shuffle_words(words, rng)


def groups_of(scenes: list[list[str]], rng: random.Random) -> Iterator[Group]:
    """Yields groups: the references of a scene with its caption, a changed one, or another's."""
    for index, (first, *others) in enumerate(scenes):
        yield {"candidate": first, "references": others}
        yield {"candidate": rng.choice(scenes[index - 1]), "references": others}
        change = (repeat_words, shuffle_words, cut_caption, double_caption)[index % 4]
        yield {"candidate": " ".join(change(first.split(), rng)), "references": others}
        # Long references with many repeated words.
        if index % 5 == 0:
            long = " ".join([*others, first])
            yield {"candidate": " ".join(scenes[index - 1] + [first]), "references": [long, others[0]]}
            yield {"candidate": " ".join(repeat_words(first.split(), rng)), "references": [long]}


def unusual_groups(count: int, rng: random.Random) -> Iterator[Group]:
    """Yields groups of random captions of PIECES."""

    def text() -> str:
        pieces = rng.choices(PIECES, k=rng.randint(1, 9))
        return "".join(piece + rng.choice((" ", " ", "")) for piece in pieces).strip()

    for _ in range(count):
        references = [text() for _ in range(rng.randint(1, 3))]
        candidate = text() if rng.random() < 0.3 else " ".join(shuffle_words(references[0].split(" "), rng))
        yield {"candidate": candidate, "references": references}


def images(path: Path) -> list[list[str]]:
    """Returns the captions of each image."""
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
    rng = random.Random(SEED)
    if arguments.size == "golden":
        scenes, unusual_count = SCENES, 0
    else:
        scenes, unusual_count = rng.sample(images(arguments.captions), 1000) + SCENES, 400
    awkward = [{"candidate": candidate, "references": references} for candidate, *references in AWKWARD]
    groups = tokenise([*groups_of(scenes, rng), *awkward])
    groups += unusual_groups(unusual_count, rng)
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
