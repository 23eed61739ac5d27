"""Computes pycocoevalcap's metrics of captions, and measures the time.

    python tests/parity/metrics.py CAPTIONS [--out target/parity/metrics] [--groups 3000]

Needs Java and `pip install pycocoevalcap==1.2` in a separate environment. CAPTIONS has lines
`IMAGE#N<TAB>CAPTION`, the format of Flickr8k and Flickr30k. Candidates are derived from the
captions: of the same image, of another image, shuffled, cut, repeated, mixed, without words, empty.
Writes into the folder

- refs.json, cands.json: the captions in the format of `worker score`;
- expected.json: the values in the format of `worker score --json`, and the versions;
- tokens.json: [caption, tokens] of each caption;
- timing.refs.json, timing.cands.json, timing.json: 5,000 candidates with 5 references each, and
  pycocoevalcap's seconds for each metric.

Then `DICO_METRICS_PARITY=target/parity/metrics cargo test -p caption-metrics --test parity -- --nocapture`.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

SEED = 20240814
TIMED_CANDIDATES = 5000

Captions = dict[str, list[str]]


def read_captions(path: Path) -> Captions:
    """Returns the captions of each image."""
    captions: Captions = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        name, caption = line.split("\t")
        captions.setdefault(name.rpartition("#")[0], []).append(caption)
    return captions


def shuffled(caption: str, rng: random.Random) -> str:
    words = caption.split()
    rng.shuffle(words)
    return " ".join(words)


def candidate(kind: int, caption: str, other: str, rng: random.Random) -> str:
    """Returns a candidate, derived from a caption of the image and one of another image."""
    words = caption.split()
    match kind:
        case 0 | 1:
            return caption
        case 2:
            return other
        case 3:
            return shuffled(caption, rng)
        case 4:
            return " ".join(words[: rng.randint(1, len(words))])
        case 5:
            return " ".join(words + words[: rng.randint(1, len(words))])
        case 6:
            return " ".join([rng.choice(words)] * rng.randint(1, 12))
        case 7:
            return " ".join(rng.choice(pair) for pair in zip(words, other.split()))
        case 8:
            return caption.upper().rstrip(" .") + "!?"
        case _:
            return rng.choice(["", " ", ".", "?!", "zyx wvu tsr qpo", "a"])


def groups(captions: Captions, number: int) -> tuple[Captions, dict[str, str]]:
    """Returns references and candidates."""
    rng = random.Random(SEED)
    images = list(captions)
    references, candidates = {}, {}
    for index in range(number):
        image = images[index % len(images)]
        key = f"{index}:{image}"
        first, *others = captions[image]
        other = captions[rng.choice(images)][0]
        candidates[key] = candidate(index % 10, first, other, rng)
        # Usually the four other captions; sometimes fewer, sometimes also the candidate's own
        # caption.
        count = rng.choice([1, 2, 3, 4, 4, 4, 5])
        references[key] = [first, *others] if count == 5 else others[:count]
        if index % 97 == 0:
            references[key][-1] = "."
    return references, candidates


def evaluate(references: Captions, candidates: dict[str, str]) -> tuple[dict, dict, list, dict]:
    """Returns corpus values, values of each item, tokens, and seconds."""
    seconds = {}

    def timed(name: str, compute: Callable):
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            result = compute()
        seconds[name] = time.perf_counter() - start
        return result

    reference_entries = {key: [{"caption": caption} for caption in group] for key, group in references.items()}
    candidate_entries = {key: [{"caption": caption}] for key, caption in candidates.items()}
    tokenizer = PTBTokenizer()
    gts, res = timed("tokenizer", lambda: (tokenizer.tokenize(reference_entries), tokenizer.tokenize(candidate_entries)))
    corpus, items = {}, {}

    def record(name: str, value: float, values: list) -> None:
        corpus[name] = float(value)
        items[name] = dict(zip(gts, map(float, values), strict=True))

    values, by_item = timed("bleu", lambda: Bleu(4).compute_score(gts, res))
    for order in range(4):
        record(f"bleu_{order + 1}", values[order], by_item[order])
    record("rouge_l", *timed("rouge_l", lambda: Rouge().compute_score(gts, res)))
    record("cider", *timed("cider", lambda: Cider().compute_score(gts, res)))
    record("meteor", *timed("meteor", lambda: Meteor().compute_score(gts, res)))
    tokens = [[raw, line] for key in references for raw, line in zip(references[key], gts[key], strict=True)]
    tokens += [[raw, res[key][0]] for key, raw in candidates.items()]
    return corpus, items, tokens, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("captions", type=Path, help="lines IMAGE#N<TAB>CAPTION")
    parser.add_argument("--out", type=Path, default=Path("target/parity/metrics"))
    parser.add_argument("--groups", type=int, default=3000)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)

    def write(name: str, value: object) -> None:
        (arguments.out / name).write_text(json.dumps(value, ensure_ascii=False) + "\n", encoding="utf-8")

    captions = {image: group for image, group in read_captions(arguments.captions).items() if len(group) == 5}
    references, candidates = groups(captions, arguments.groups)
    corpus, items, tokens, _ = evaluate(references, candidates)
    versions = {"pycocoevalcap": importlib.metadata.version("pycocoevalcap")}
    write("refs.json", references)
    write("cands.json", candidates)
    write("expected.json", {"versions": versions, "corpus": corpus, "items": items})
    write("tokens.json", tokens)

    images = list(captions)
    names = [images[index % len(images)] for index in range(TIMED_CANDIDATES)]
    references = {f"{index}:{name}": captions[name] for index, name in enumerate(names)}
    candidates = {key: captions[other][0] for key, other in zip(references, names[1:] + names[:1], strict=True)}
    *_, seconds = evaluate(references, candidates)
    seconds["all"] = sum(seconds.values())
    write("timing.refs.json", references)
    write("timing.cands.json", candidates)
    write("timing.json", seconds)
    print(json.dumps({name: round(value, 2) for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
