"""What transformers' beam search finds in training mode, as the published code searches its candidates: statistics over
many draws of the dropout masks.

Writes dropout.json.
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

import beams
import captioner
import cases
import published


@dataclass(frozen=True)
class Case:
    sizes: published.Sizes
    prefix: str
    # The same at all places, as in the published configuration.
    probability: float
    search: beams.Search
    images: int
    draws: int


# Short, so that the first tokens decide; and with more dropout than is usual, so that each place of it shows.
CASE = Case(published.SMALL, captioner.PREFIX, 0.3, beams.Search(5, 8, 1.0), 3, 4_000)


def moments(values: Tensor) -> dict[str, float]:
    return {"mean": values.mean().item(), "deviation": values.std().item()}


def statistics(model: nn.Module, case: Case, image: int) -> dict[str, dict[str, float]]:
    """Over the draws: the scores of the best and of the last candidate, and the tokens of the best."""
    hidden = captioner.image(case.sizes, image).expand(case.draws, -1, -1)
    found = beams.search(model, hidden, case.search)
    values = {
        "best": [each.scores[0] for each in found],
        "last": [each.scores[-1] for each in found],
        "length": [float(len(each.tokens[0])) for each in found],
    }
    return {name: moments(torch.tensor(each, dtype=torch.float64)) for name, each in values.items()}


def main() -> None:
    arguments = cases.arguments(__doc__)
    model = published.by_formula(CASE.sizes, CASE.prefix, captioner.GAINS).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = CASE.probability
    images = [statistics(model, CASE, image) for image in range(CASE.images)]
    expected = {
        "versions": cases.versions(),
        "sizes": CASE.sizes.described(),
        "prefix": CASE.prefix,
        "gains": captioner.GAINS,
        "probability": CASE.probability,
        "search": asdict(CASE.search),
        "draws": CASE.draws,
        "images": images,
    }
    cases.write_json(arguments.out / "dropout.json", expected)
    print(images)


if __name__ == "__main__":
    main()
