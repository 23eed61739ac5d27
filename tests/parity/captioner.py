"""Expected results of the captioner: hidden states, logits, log-probabilities, and beam search.

Writes captioner.json and captioner.safetensors.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel

import beams
import common
import formula
import published_captioner
from beams import Search


@dataclass(frozen=True)
class Case:
    """A model with weights by formula, and the inputs of the comparison."""

    sizes: published_captioner.Sizes
    prefix: str
    gains: dict[str, float]
    # If not None, ln_f's bias is the end token's row of wte times this, because in a large
    # vocabulary random weights never make the end token likely.
    end_bias: float | None
    captions: int
    searches: list[tuple[Search, int]]


# The gains increase the influence of position and image. Without them captions repeat one token and
# never end. With this prefix the end token is likely.
GAINS = {"wpe.weight": 8.0, "wte.weight": 2.0, "crossattention.c_proj.weight": 4.0, "ln_f.bias": 16.0}
PREFIX = "small1387."

SEARCHES = [
    (Search(1, 30, 1.0), 20),
    (Search(2, 30, 1.0), 20),
    (Search(5, 30, 1.0), 60),
    (Search(10, 30, 1.0), 10),
    (Search(5, 8, 1.0), 20),
    (Search(5, 3, 1.0), 20),
    (Search(5, 30, 0.0), 20),
    (Search(5, 30, 2.0), 20),
    (Search(2, 30, 1.0, cut_counts_begin=True), 20),
    (Search(5, 30, 1.0, cut_counts_begin=True), 30),
    (Search(5, 8, 1.0, cut_counts_begin=True), 20),
    (Search(5, 30, 2.0, cut_counts_begin=True), 20),
]

GOLDEN = Case(published_captioner.SMALL, PREFIX, GAINS, None, 6, SEARCHES)
FULL = Case(
    published_captioner.PAPER,
    "paper.",
    GAINS | {"wte.weight": 4.0},
    1.25,
    4,
    [(Search(1, 30, 1.0), 4), (Search(5, 30, 1.0), 8), (Search(5, 8, 1.0), 4)],
)


def build_model(case: Case) -> VisionEncoderDecoderModel:
    model = published_captioner.build_by_formula(case.sizes, case.prefix, case.gains)
    if case.end_bias is not None:
        decoder = model.decoder.transformer
        with torch.no_grad():
            decoder.ln_f.bias.copy_(decoder.wte.weight[case.sizes.end] * case.end_bias)
    return model


def image(sizes: published_captioner.Sizes, number: int) -> Tensor:
    """Returns vision hidden states [tokens, width] of an image by formula."""
    return formula.inputs(f"image{number}", (sizes.vision_tokens, sizes.vision_width))


def captions(sizes: published_captioner.Sizes, count: int) -> list[list[int]]:
    """Returns captions of 2, 5, 8 ... tokens by formula, begin and end included."""
    result = []
    for number in range(count):
        units = formula.units(f"caption{number}", 3 * number) + 0.5
        result.append([sizes.begin, *(int(unit * sizes.begin) for unit in units), sizes.end])
    return result


def pad_sequences(sequences: list[list[int]], pad: int) -> Tensor:
    longest = max(map(len, sequences))
    return torch.tensor([sequence + [pad] * (longest - len(sequence)) for sequence in sequences])


def teacher_forcing(model: VisionEncoderDecoderModel, case: Case) -> tuple[list[list[int]], dict[str, Tensor]]:
    """Computes caption i for image i. At full size only a slice of the logits is returned."""
    texts = captions(case.sizes, case.captions)
    ids = pad_sequences(texts, case.sizes.pad)
    hidden = torch.stack([image(case.sizes, number) for number in range(case.captions)])
    with torch.no_grad():
        encoded = model.encoder(vision_hidden=hidden).last_hidden_state
        logits = published_captioner.logits(model, hidden, ids)
    following = ids[:, 1:]
    token_log_probabilities = logits[:, :-1].log_softmax(-1).gather(2, following.unsqueeze(2)).squeeze(2)
    token_log_probabilities = token_log_probabilities * (following != case.sizes.pad)
    return texts, {
        "encoded": encoded[:, :10],
        "logits": logits[..., :: max(1, case.sizes.vocabulary // 64)],
        "token_log_probabilities": token_log_probabilities,
        "log_probabilities": token_log_probabilities.sum(1),
    }


def search_case(model: VisionEncoderDecoderModel, case: Case, settings: Search, count: int) -> dict:
    """Returns a search's settings and its results for each image."""
    selected, left_out = beams.select(model, lambda number: image(case.sizes, number), count, settings)
    images = [
        {"image": number, "tokens": found.tokens, "scores": found.scores, "gap": found.gap}
        for number, found in selected.items()
    ]
    return asdict(settings) | {"images": images, "left_out": left_out}


def summary(search: dict, end: int) -> str:
    """Describes a search in a line, for the choice of cases: ended captions, smallest gap."""
    tokens_by_caption = [tokens for image in search["images"] for tokens in image["tokens"]]
    ended = [len(tokens) for tokens in tokens_by_caption if tokens[-1] == end]
    gap = min(image["gap"] for image in search["images"])
    settings = f"k={search['beams']} max={search['max_length']} penalty={search['length_penalty']}"
    settings += " (begin counts when cut)" * search["cut_counts_begin"]
    mean = sum(ended) / max(len(ended), 1)
    left_out = len(search["left_out"])
    return f"{settings}: {len(ended)} of {len(tokens_by_caption)} end, after {mean:.1f}; least gap {gap:.1e}; {left_out} left out"


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    case = FULL if arguments.size == "full" else GOLDEN
    model = build_model(case)
    texts, tensors = teacher_forcing(model, case)
    searches = [search_case(model, case, settings, count) for settings, count in case.searches]
    for search in searches:
        print(summary(search, case.sizes.end))
    expected = {
        "versions": common.versions(),
        "sizes": case.sizes.as_dict(),
        "prefix": case.prefix,
        "gains": case.gains,
        "end_bias": case.end_bias,
        "captions": texts,
        "searches": searches,
    }
    common.write_json(arguments.out / "captioner.json", expected)
    common.write_tensors(arguments.out / "captioner.safetensors", tensors)


if __name__ == "__main__":
    main()
