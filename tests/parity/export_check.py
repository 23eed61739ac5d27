"""Loads an exported folder strictly with transformers, and prints logits.

Usage: export_check.py DIR [--out FILE]. The exit status is 1 if a key is missing or unexpected.
Prints the shape of the logits and the logits after the last token as JSON; ``--out`` writes all
logits as safetensors.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from transformers import VisionEncoderDecoderModel

import common
import formula
import published_captioner

# Buffers that transformers 4.20 stored and later versions recompute.
OLD_BUFFERS = re.compile(r"position_ids$|\.(cross)?attn\.(masked_)?bias$|\.crossattention\.(masked_)?bias$")
TOKENS = (1, 2, 3, 5, 8)


def load(folder: Path) -> VisionEncoderDecoderModel:
    """Loads the model. Exits if a parameter is missing, unexpected or has another shape."""
    settings = {"output_loading_info": True, "attn_implementation": published_captioner.ATTENTION}
    model, report = VisionEncoderDecoderModel.from_pretrained(folder, **settings)
    unexpected = [name for name in report["unexpected_keys"] if not OLD_BUFFERS.search(name)]
    wrong = {"missing": report["missing_keys"], "unexpected": unexpected, "misshapen": report["mismatched_keys"]}
    if any(wrong.values()):
        sys.exit(f"{folder}: {json.dumps(wrong, default=str)}")
    return model.float().eval()


def logits(model: VisionEncoderDecoderModel) -> torch.Tensor:
    """Returns logits [1, 6, vocabulary] of the image ``input.export`` and begin + ``TOKENS``."""
    vision = model.config.encoder.vision_encoder
    pixels = formula.inputs("export", (1, 3, vision.image_size, vision.image_size))
    ids = torch.tensor([[model.config.decoder.bos_token_id, *TOKENS]])
    with torch.no_grad():
        hidden = model.encoder.vision_encoder(pixels).last_hidden_state
        return published_captioner.logits(model, hidden, ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="safetensors file to write the logits to")
    arguments = parser.parse_args()
    computed = logits(load(arguments.folder))
    if arguments.out:
        common.write_tensors(arguments.out, {"logits": computed})
    print(json.dumps({"shape": list(computed.shape), "last": computed[0, -1, :67].tolist()}))


if __name__ == "__main__":
    main()
