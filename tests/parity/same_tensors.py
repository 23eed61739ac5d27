"""Compares the tensors of two Hugging Face folders bit by bit.

Usage: same_tensors.py BEFORE AFTER. The exit status is 1 if a tensor is missing, new or different.
A head that is tied to the word embeddings may be stored or omitted.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TIED = "decoder.lm_head.weight"


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Reads all tensors of a folder from its safetensors and pickle files."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.suffix == ".bin":
            tensors |= torch.load(path, weights_only=True)
    return tensors


def is_same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)


def main() -> None:
    before, after = (read_tensors(Path(argument)) for argument in sys.argv[1:3])
    unmatched = (before.keys() ^ after.keys()) - {TIED}
    differing = [name for name in before.keys() & after.keys() if not is_same(before[name], after[name])]
    if unmatched or differing:
        sys.exit(f"missing or new: {sorted(unmatched)}; different: {sorted(differing)}")
    print(f"{sys.argv[1]}: {len(before)} tensors are equal bit by bit")


if __name__ == "__main__":
    main()
