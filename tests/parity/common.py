"""Shared functions: arguments, reproducible arithmetic, and the two formats of the results."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy
import safetensors.torch
import torch
import transformers

SIZES = ("golden", "full")


def parse_arguments(description: str) -> argparse.Namespace:
    """Parses ``--out DIR --size golden|full``, and creates the folder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder that the results are written to")
    parser.add_argument("--size", choices=SIZES, default="golden", help="golden: small, committed; full: published sizes, not committed")
    parsed = parser.parse_args()
    parsed.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    return parsed


def versions() -> dict[str, str]:
    """Returns the versions of the libraries."""
    return {"torch": torch.__version__, "transformers": transformers.__version__, "numpy": numpy.__version__}


def write_json(path: Path, value: object) -> None:
    """Writes compact JSON, so that the golden files stay small."""
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes a safetensors file; tensors are f32 or integers."""
    safetensors.torch.save_file({name: value.detach().clone().contiguous() for name, value in tensors.items()}, path)
