"""Writes CLIP weights in the formats of OpenCLIP and PAC-S++, and expected embeddings of bytes.

Writes published_clips.json, and for each case NAME.safetensors with the embeddings, and the
weights: a folder with ``open_clip_config.json``, which open_clip itself reads, or a pickle of a
PAC-S++ scorer.
"""

import json
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

import common
import clip
import clip_model
import formula
from clip_model import ClipConfig

HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
# Differs from all published models, so that a reader cannot confuse mean and standard deviation.
UNEVEN = ([0.4, 0.5, 0.6], [0.3, 0.25, 0.2])
TINY = clip.TINY
# Name: config, width of a head of the vision encoder, mean and standard deviation, custom text
# tower.
OPEN_CLIP = {
    "golden": {"gelu": (TINY, 16, UNEVEN, False), "custom_text": (TINY, 32, HALVES, True)},
    "full": {
        "gelu": (clip.PUBLISHED["vit_b_32"], 64, HALVES, False),
        # The head width of ViT-H/14, with two layers.
        "sixteen_heads": (ClipConfig(224, 14, 1280, 2, (), 1024, 2, 77, 49408, 1024), 80, clip_model.OPENAI_NORMALIZATION, False),
        "laion2b_vit_l_14": (clip.PUBLISHED["vit_l_14"], 64, HALVES, False),
        "custom_text": (clip.PUBLISHED["vit_b_16"], 64, clip_model.OPENAI_NORMALIZATION, True),
    },
}
LORA = {"golden": TINY, "full": clip.PUBLISHED["vit_b_32"]}
RANK = 4
IMAGES = 2


def image_bytes(config: ClipConfig, name: str) -> Tensor:
    """Returns bytes by formula, [images, 3, size, size]."""
    return ((clip.pixels(config, name, IMAGES) + 1) * 128).floor().to(torch.uint8)


def texts(config: ClipConfig) -> list[list[int]]:
    """Returns the texts that fit into the context."""
    return [text for text in clip.texts(config) if len(text) <= config.context_length]


def text_tokens(config: ClipConfig) -> Tensor:
    return clip.pad(texts(config), config.context_length)


def open_clip_config(config: ClipConfig, head_width: int, normalization, custom_text: bool) -> dict:
    mean, std = normalization
    model = {
        "embed_dim": config.embedding,
        "vision_cfg": {
            "image_size": config.image_size,
            "layers": config.layers,
            "width": config.width,
            "head_width": head_width,
            "patch_size": config.patch_size,
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": config.vocabulary_size,
            "width": config.text_width,
            "heads": config.text_heads,
            "layers": config.text_layers,
        },
    }
    if custom_text:
        model["custom_text"] = True
    return {"model_cfg": model, "preprocess_cfg": {"mean": mean, "std": std}}


def open_clip_case(name: str, config: ClipConfig, head_width: int, normalization, custom: bool, out: Path):
    folder = out / name
    folder.mkdir(exist_ok=True)
    state = clip_model.openai_state(config)
    if custom:
        outside = ("visual.", "logit_scale")
        state = {key if key.startswith(outside) else f"text.{key}": value for key, value in state.items()}
    file_config = open_clip_config(config, head_width, normalization, custom)
    (folder / "open_clip_config.json").write_text(json.dumps(file_config, indent=1) + "\n")
    torch.save({key: value.half() for key, value in state.items()}, folder / "open_clip_pytorch_model.bin")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    pixels = preprocess.transforms[-1](image_bytes(config, name).float() / 255)
    with torch.no_grad():
        image_embeddings = model.encode_image(pixels, normalize=True)
        text_embeddings = model.encode_text(text_tokens(config), normalize=True)
    common.write_tensors(out / f"{name}.safetensors", {"images": image_embeddings, "texts": text_embeddings})
    return {"name": name, "file": name, "architecture": config_entry(config), "texts": texts(config)}


def config_entry(config: ClipConfig) -> dict:
    return {"image_size": config.image_size}


def lora_factors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns LoRA factors by formula for all weights that have factors in PAC-S++."""
    result = {}
    for name, weight in state.items():
        if name.endswith("attn.in_proj_weight"):
            stem, (outputs, inputs), rank = f"{name}_lora_", weight.shape, RANK
        elif name.endswith(("attn.out_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")):
            stem, (outputs, inputs), rank = name.removesuffix("weight") + "lora_", weight.shape, RANK
        elif name == "visual.conv1.weight":
            outputs, inputs, side, _ = weight.shape
            stem, outputs, inputs, rank = "visual.conv1.lora_", outputs * side, inputs * side, RANK * side
        else:
            continue
        result[f"{stem}A"] = formula.parameter(f"{stem}A", (rank, inputs))
        result[f"{stem}B"] = formula.parameter(f"{stem}B", (outputs, rank))
    return result


class LoraScorer:
    """Computes CLIP with LoRA factors like the PAC-S++ scorer.

    ``mlp``: whether to add the factors of the MLPs.
    """

    def __init__(self, config: ClipConfig, state: dict[str, Tensor], mlp: bool):
        self.config, self.state, self.mlp = config, state, mlp

    def linear(self, x: Tensor, weight: str, bias: str, stem: str, add_factors: bool = True) -> Tensor:
        y = functional.linear(x, self.state[weight], self.state[bias])
        if add_factors:
            low = functional.linear(x, self.state[f"{stem}lora_A"])
            y = y + functional.linear(low, self.state[f"{stem}lora_B"]) / RANK
        return y

    def norm(self, x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def block(self, x: Tensor, name: str, heads: int, causal: bool) -> Tensor:
        attn = f"{name}.attn"
        joined = self.linear(
            self.norm(x, f"{name}.ln_1"), f"{attn}.in_proj_weight", f"{attn}.in_proj_bias", f"{attn}.in_proj_weight_"
        )
        projections = [projection.unflatten(-1, (heads, -1)).transpose(1, 2) for projection in joined.chunk(3, dim=-1)]
        context = functional.scaled_dot_product_attention(*projections, is_causal=causal).transpose(1, 2).flatten(2)
        out = f"{attn}.out_proj"
        x = x + self.linear(context, f"{out}.weight", f"{out}.bias", f"{out}.")
        fc, proj = f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"
        hidden = self.linear(self.norm(x, f"{name}.ln_2"), f"{fc}.weight", f"{fc}.bias", f"{fc}.", self.mlp)
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return x + self.linear(hidden, f"{proj}.weight", f"{proj}.bias", f"{proj}.", self.mlp)

    def images(self, pixels: Tensor) -> Tensor:
        state, sizes = self.state, self.config
        weight = state["visual.conv1.weight"]
        weight = weight + (state["visual.conv1.lora_B"] @ state["visual.conv1.lora_A"]).view(weight.shape) / RANK
        patches = functional.conv2d(pixels, weight, stride=sizes.patch_size).flatten(2).mT
        first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
        x = self.norm(x, "visual.ln_pre")
        for layer in range(sizes.layers):
            x = self.block(x, f"visual.transformer.resblocks.{layer}", sizes.heads, causal=False)
        return clip_model.normalize(self.norm(x[:, 0], "visual.ln_post") @ state["visual.proj"])

    def texts(self, ids: Tensor) -> Tensor:
        state, sizes = self.state, self.config
        x = state["token_embedding.weight"][ids] + state["positional_embedding"]
        for layer in range(sizes.text_layers):
            x = self.block(x, f"transformer.resblocks.{layer}", sizes.text_heads, causal=True)
        x = self.norm(x, "ln_final")[torch.arange(len(ids)), ids.argmax(dim=-1)]
        return clip_model.normalize(x @ state["text_projection"])


def lora_case(config: ClipConfig, out: Path) -> dict:
    name, file = "pac_s_plus_plus", "pac_s_plus_plus.pth"
    state = clip_model.openai_state(config)
    state |= lora_factors(state)
    state = {key: value.half() for key, value in state.items()}
    torch.save({"state_dict": state}, out / file)
    state = {key: value.float() for key, value in state.items()}
    mean, std = (torch.tensor(values)[:, None, None] for values in clip_model.OPENAI_NORMALIZATION)
    pixels = (image_bytes(config, name).float() / 255 - mean) / std
    tensors = {}
    with torch.no_grad():
        for reading, mlp in (("as_released", False), ("merged", True)):
            scorer = LoraScorer(config, state, mlp)
            tensors |= {f"{reading}.images": scorer.images(pixels), f"{reading}.texts": scorer.texts(text_tokens(config))}
    common.write_tensors(out / f"{name}.safetensors", tensors)
    difference = float((tensors["as_released.texts"] - tensors["merged.texts"]).abs().max())
    print(f"{name}: embeddings of the two readings differ by up to {difference:.3f}")
    return {"name": name, "file": file, "architecture": config_entry(config), "texts": texts(config)}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    models = [open_clip_case(name, *model, arguments.out) for name, model in OPEN_CLIP[arguments.size].items()]
    expected = {
        "versions": common.versions(),
        "images": IMAGES,
        "open_clip": models,
        "lora": lora_case(LORA[arguments.size], arguments.out),
    }
    common.write_json(arguments.out / "published_clips.json", expected)


if __name__ == "__main__":
    main()
