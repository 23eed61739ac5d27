"""Folders in the format of the published captioners: config.json, pickle or safetensors.

Writes the folders ``pickle`` and ``shards``, and released.json and released.safetensors with the
model's expected results.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import VisionEncoderDecoderModel

import captioner
import common
import formula
import published_captioner

# Small enough to commit. At full size the unused word embeddings have BERT's own vocabulary.
GOLDEN = published_captioner.Sizes(48, 2, 1, 16, 8, 32, 4, 1, 64, 1, 77, 67)
BERT_VOCABULARY = {"golden": 11, "full": 30522}
MAX_SHARD_SIZE = {"golden": "100KB", "full": "500MB"}
IMAGES = 2
CAPTIONS = 4


def build_model(sizes: published_captioner.Sizes, bert_vocabulary: int) -> VisionEncoderDecoderModel:
    """Builds the model with all parameters by formula, without prefix or gains."""
    model = published_captioner.build(published_captioner.build_config(sizes, bert_vocabulary))
    state = formula.state(published_captioner.parameter_shapes(model))
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(state[name])
    return model


def legacy_buffers(sizes: published_captioner.Sizes, bert_positions: int = 512) -> dict[str, Tensor]:
    """Returns the masks and position ids that transformers 4.20, the authors' version, stored."""
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


def save(model: VisionEncoderDecoderModel, sizes: published_captioner.Sizes, shard: str, out: Path) -> None:
    """Writes the two folders. The pickle has the tied head under both names, with one storage."""
    pickle = out / "pickle"
    model.config.save_pretrained(pickle)
    torch.save(model.state_dict() | legacy_buffers(sizes), pickle / "pytorch_model.bin")
    model.save_pretrained(out / "shards", max_shard_size=shard, safe_serialization=True)


def expected_tensors(model: VisionEncoderDecoderModel, sizes: published_captioner.Sizes, captions: list[list[int]]) -> dict[str, Tensor]:
    """Computes hidden states and logits of caption i for image i mod ``IMAGES``, from pixels."""
    shape = (3, sizes.image_size, sizes.image_size)
    pixels = torch.stack([formula.inputs(f"released.pixels{number}", shape) for number in range(IMAGES)])
    ids = captioner.pad_sequences(captions, sizes.pad)
    with torch.no_grad():
        hidden = model.encoder.vision_encoder(pixels).last_hidden_state
        caption_hidden = hidden[torch.arange(len(captions)) % IMAGES]
        logits = published_captioner.logits(model, caption_hidden, ids)
    stride = max(1, sizes.vocabulary // 64)
    return {"hidden": hidden[:, :10], "logits": logits[..., ::stride]}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    full = arguments.size == "full"
    sizes = published_captioner.PAPER if full else GOLDEN
    model = build_model(sizes, BERT_VOCABULARY[arguments.size])
    if not full:
        # f16 weights halve the files. The results are computed in f32 from the rounded weights.
        model = model.half().float()
    captions = captioner.captions(sizes, CAPTIONS)
    common.write_tensors(arguments.out / "released.safetensors", expected_tensors(model, sizes, captions))
    save(model if full else model.half(), sizes, MAX_SHARD_SIZE[arguments.size], arguments.out)
    expected = {
        "versions": common.versions(),
        "sizes": sizes.as_dict(),
        "dtype": "f32" if full else "f16",
        "images": IMAGES,
        "captions": captions,
        "hidden_tokens": 10,
        "logits_stride": max(1, sizes.vocabulary // 64),
    }
    common.write_json(arguments.out / "released.json", expected)


if __name__ == "__main__":
    main()
