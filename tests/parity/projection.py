"""Quantiles of the initial weights and biases of ``torch.nn.Linear``, the published projection.

Writes projection.json.
"""

import torch
from torch import nn

import common

INPUTS, OUTPUTS = 768, 96
# Number of initialised layers; enough for stable quantiles.
DRAWS = 200
QUANTILES = 20


def quantiles(values: torch.Tensor) -> list[float]:
    """Returns equidistant quantiles from the smallest to the largest value."""
    ascending = values.flatten().sort().values
    return [ascending[round(share * (len(ascending) - 1) / QUANTILES)].item() for share in range(QUANTILES + 1)]


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    layers = [nn.Linear(INPUTS, OUTPUTS) for _ in range(DRAWS)]
    expected = {"versions": common.versions(), "inputs": INPUTS, "outputs": OUTPUTS}
    for name in ("weight", "bias"):
        expected[name] = quantiles(torch.stack([getattr(layer, name).detach() for layer in layers]))
    common.write_json(arguments.out / "projection.json", expected)


if __name__ == "__main__":
    main()
