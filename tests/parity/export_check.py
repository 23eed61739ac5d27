"""Loads a folder that our exporter wrote with transformers and the glue, strictly, and prints what it computes.

Usage: export_check.py DIR [--out FILE]. Exit status 1 where a key is missing or unexpected. Prints as JSON the shape of
the logits and those after the last token; ``--out`` keeps all of them as safetensors.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from transformers import VisionEncoderDecoderModel

import cases
import formula
import published

# Buffers that transformers 4.20 stored and later versions make afresh.
OLD_BUFFERS = re.compile(r"position_ids$|\.(cross)?attn\.(masked_)?bias$|\.crossattention\.(masked_)?bias$")
TOKENS = (1, 2, 3, 5, 8)


def load(folder: Path) -> VisionEncoderDecoderModel:
    """The model; refuses where transformers would quietly make up or leave out a parameter."""
    settings = {"output_loading_info": True, "attn_implementation": published.ATTENTION}
    model, report = VisionEncoderDecoderModel.from_pretrained(folder, **settings)
    unexpected = [name for name in report["unexpected_keys"] if not OLD_BUFFERS.search(name)]
    wrong = {"missing": report["missing_keys"], "unexpected": unexpected, "misshapen": report["mismatched_keys"]}
    if any(wrong.values()):
        sys.exit(f"{folder}: {json.dumps(wrong, default=str)}")
    return model.float().eval()


def logits(model: VisionEncoderDecoderModel) -> torch.Tensor:
    """For the image ``input.export`` and the caption begin, 1, 2, 3, 5, 8; [1, 6, vocabulary]."""
    vision = model.config.encoder.vision_encoder
    pixels = formula.inputs("export", (1, 3, vision.image_size, vision.image_size))
    ids = torch.tensor([[model.config.decoder.bos_token_id, *TOKENS]])
    with torch.no_grad():
        hidden = model.encoder.vision_encoder(pixels).last_hidden_state
        return published.logits(model, hidden, ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="safetensors file to write the logits to")
    arguments = parser.parse_args()
    computed = logits(load(arguments.folder))
    if arguments.out:
        cases.write_tensors(arguments.out, {"logits": computed})
    print(json.dumps({"shape": list(computed.shape), "last": computed[0, -1, :67].tolist()}))


if __name__ == "__main__":
    main()
