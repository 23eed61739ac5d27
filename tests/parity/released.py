"""Folders as the published captioners come: config.json and weights, as one pickle and as shards of safetensors.

Writes the folders ``pickle`` and ``shards``, and released.json and released.safetensors with what the model computes.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel

import captioner
import cases
import formula
import published

# Small enough for a repository; the paper's with BERT's own vocabulary, unused though it is.
GOLDEN = published.Sizes(48, 2, 1, 16, 8, 32, 4, 1, 64, 1, 77, 67)
BERT_VOCABULARY = {"golden": 11, "full": 30522}
SHARD = {"golden": "100KB", "full": "500MB"}
IMAGES = 2
CAPTIONS = 4


def model_of(sizes: published.Sizes, bert_vocabulary: int) -> VisionEncoderDecoderModel:
    """All parameters by formula, under their published names, without prefix or gains."""
    model = published.build(published.configuration(sizes, bert_vocabulary))
    state = formula.state(published.parameter_shapes(model))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(state[name])
    return model


def buffers_of_old(sizes: published.Sizes, bert_positions: int = 512) -> dict[str, Tensor]:
    """What transformers 4.20, which the authors used, stored besides parameters: causal masks and position numbers."""
    side = sizes.positions
    causal = torch.tril(torch.ones(side, side, dtype=torch.uint8)).view(1, 1, side, side)
    buffers = {
        "encoder.vision_encoder.embeddings.position_ids": torch.arange(sizes.vision_tokens).unsqueeze(0),
        "encoder.encoder.embeddings.position_ids": torch.arange(bert_positions).unsqueeze(0),
    }
    for layer in range(sizes.decoder_layers):
        for attention in ("attn", "crossattention"):
            buffers[f"decoder.transformer.h.{layer}.{attention}.bias"] = causal.clone()
            buffers[f"decoder.transformer.h.{layer}.{attention}.masked_bias"] = torch.tensor(-1e4)
    return buffers


def save(model: VisionEncoderDecoderModel, sizes: published.Sizes, shard: str, out: Path) -> None:
    """The two folders. In the pickle the tied head is stored under both names, sharing one storage."""
    pickle = out / "pickle"
    model.config.save_pretrained(pickle)
    torch.save(model.state_dict() | buffers_of_old(sizes), pickle / "pytorch_model.bin")
    model.save_pretrained(out / "shards", max_shard_size=shard, safe_serialization=True)


def computed(model: VisionEncoderDecoderModel, sizes: published.Sizes, captions: list[list[int]]) -> dict[str, Tensor]:
    """Caption i under image i mod ``IMAGES``, from pixels to logits."""
    shape = (3, sizes.image_size, sizes.image_size)
    pixels = torch.stack([formula.inputs(f"released.pixels{number}", shape) for number in range(IMAGES)])
    ids = captioner.padded(captions, sizes.pad)
    with torch.no_grad():
        hidden = model.encoder.vision_encoder(pixels).last_hidden_state
        shown = hidden[torch.arange(len(captions)) % IMAGES]
        logits = published.logits(model, shown, ids)
    stride = max(1, sizes.vocabulary // 64)
    return {"hidden": hidden[:, :10], "logits": logits[..., ::stride]}


def main() -> None:
    arguments = cases.arguments(__doc__)
    full = arguments.size == "full"
    sizes = published.PAPER if full else GOLDEN
    model = model_of(sizes, BERT_VOCABULARY[arguments.size])
    if not full:
        # Halves the files; what is computed is computed in f32 from the rounded weights.
        model = model.half().float()
    captions = captioner.captions(sizes, CAPTIONS)
    cases.write_tensors(arguments.out / "released.safetensors", computed(model, sizes, captions))
    save(model if full else model.half(), sizes, SHARD[arguments.size], arguments.out)
    expected = {
        "versions": cases.versions(),
        "sizes": sizes.described(),
        "dtype": "f32" if full else "f16",
        "images": IMAGES,
        "captions": captions,
        "hidden_tokens": 10,
        "logits_stride": max(1, sizes.vocabulary // 64),
    }
    cases.write_json(arguments.out / "released.json", expected)


if __name__ == "__main__":
    main()
