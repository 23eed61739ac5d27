"""What all scripts share: arguments, reproducible arithmetic, and the two formats of the results."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy
import safetensors.torch
import torch
import transformers

SIZES = ("golden", "full")


def arguments(description: str) -> argparse.Namespace:
    """``--out DIR --size golden|full`` of every script; the folder exists afterwards."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder that the results are written to")
    parser.add_argument("--size", choices=SIZES, default="golden", help="golden: small, committed; full: scratch")
    parsed = parser.parse_args()
    parsed.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    return parsed


def versions() -> dict[str, str]:
    """What the expected results were made with."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": numpy.__version__}


def write_json(path: Path, value: object) -> None:
    """Compact where lists are long, so that the golden files stay small."""
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """One safetensors file; f32 unless a tensor is of integers."""
    safetensors.torch.save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)
