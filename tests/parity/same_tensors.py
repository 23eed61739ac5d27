"""Compares the tensors of two Hugging Face folders bit by bit.

Usage: same_tensors.py BEFORE AFTER. Exit status 1 where a tensor is missing, new or different. A head that is tied to the
word embeddings may be stored or left out.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TIED = "decoder.lm_head.weight"


def read(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder, whatever its files."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.suffix == ".bin":
            tensors |= torch.load(path, weights_only=True)
    return tensors


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def main() -> None:
    before, after = (read(Path(argument)) for argument in sys.argv[1:3])
    lost = (before.keys() ^ after.keys()) - {TIED}
    differing = [name for name in before.keys() & after.keys() if not same(before[name], after[name])]
    if lost or differing:
        sys.exit(f"missing or new: {sorted(lost)}; different: {sorted(differing)}")
    print(f"{sys.argv[1]}: {len(before)} tensors come back bit by bit")


if __name__ == "__main__":
    main()
