"""How ``torch.nn.Linear`` starts, as the projection of the published code does: quantiles of weights and biases.

Writes projection.json.
"""

import torch
from torch import nn

import cases

INPUTS, OUTPUTS = 768, 96
# Layers drawn, so that chance takes no part in the quantiles.
DRAWS = 200
QUANTILES = 20


def quantiles(values: torch.Tensor) -> list[float]:
    """From the least to the largest value, in equal shares."""
    ascending = values.flatten().sort().values
    return [ascending[round(share * (len(ascending) - 1) / QUANTILES)].item() for share in range(QUANTILES + 1)]


def main() -> None:
    arguments = cases.arguments(__doc__)
    layers = [nn.Linear(INPUTS, OUTPUTS) for _ in range(DRAWS)]
    expected = {"versions": cases.versions(), "inputs": INPUTS, "outputs": OUTPUTS}
    for part in ("weight", "bias"):
        expected[part] = quantiles(torch.stack([getattr(layer, part).detach() for layer in layers]))
    cases.write_json(arguments.out / "projection.json", expected)


if __name__ == "__main__":
    main()
