"""Statistics of transformers' beam search in training mode, over many dropout masks.

The published code searches its candidates in training mode.

Writes dropout.json.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

import beams
import captioner
import common
import published_captioner


@dataclass(frozen=True)
class Case:
    sizes: published_captioner.Sizes
    prefix: str
    # Of all dropout layers, as in the published configuration.
    probability: float
    search: beams.Search
    images: int
    draws: int


# Captions are short, so that the first tokens matter, and dropout is high, so that each dropout
# layer matters.
CASE = Case(published_captioner.SMALL, captioner.PREFIX, 0.3, beams.Search(5, 8, 1.0), 3, 4_000)


def moments(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "deviation": values.std().item()}


def statistics(model: nn.Module, case: Case, image: int) -> dict[str, dict[str, float]]:
    """Returns statistics over the draws: scores of best and last candidate, length of the best."""
    hidden = captioner.image(case.sizes, image).expand(case.draws, -1, -1)
    results = beams.search(model, hidden, case.search)
    values = {
        "best": [result.scores[0] for result in results],
        "last": [result.scores[-1] for result in results],
        "length": [float(len(result.tokens[0])) for result in results],
    }
    return {name: moments(torch.tensor(samples, dtype=torch.float64)) for name, samples in values.items()}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    model = published_captioner.build_by_formula(CASE.sizes, CASE.prefix, captioner.GAINS).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = CASE.probability
    images = [statistics(model, CASE, image) for image in range(CASE.images)]
    expected = {
        "versions": common.versions(),
        "sizes": CASE.sizes.as_dict(),
        "prefix": CASE.prefix,
        "gains": captioner.GAINS,
        "probability": CASE.probability,
        "search": asdict(CASE.search),
        "draws": CASE.draws,
        "images": images,
    }
    common.write_json(arguments.out / "dropout.json", expected)
    print(images)


if __name__ == "__main__":
    main()
