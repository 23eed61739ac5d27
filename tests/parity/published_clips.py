"""CLIPs as OpenCLIP and PAC-S++ publish them: files, and the embeddings that their own code computes from bytes.

Writes published_clips.json, NAME.safetensors with the embeddings of each case, and its weights: a folder with
``open_clip_config.json``, which open_clip itself reads, or a pickle of a PAC-S++ scorer.
"""

import json
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional

import cases
import clip
import clip_model
import formula
from clip_model import Architecture

HALVES = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
# Which no published model has, so that none of the two can be taken for the other.
UNEVEN = ([0.4, 0.5, 0.6], [0.3, 0.25, 0.2])
TINY = clip.TINY
# Name: architecture, width of a head of the vision encoder, mean and standard deviation, custom text tower.
OPEN_CLIP = {
    "golden": {"gelu": (TINY, 16, UNEVEN, False), "custom_text": (TINY, 32, HALVES, True)},
    "full": {
        "gelu": (clip.PUBLISHED["vit_b_32"], 64, HALVES, False),
        # ViT-H/14's heads, in two layers.
        "sixteen_heads": (Architecture(224, 14, 1280, 2, (), 1024, 2, 77, 49408, 1024), 80, clip_model.OPENAI, False),
        "laion2b_vit_l_14": (clip.PUBLISHED["vit_l_14"], 64, HALVES, False),
        "custom_text": (clip.PUBLISHED["vit_b_16"], 64, clip_model.OPENAI, True),
    },
}
LORA = {"golden": TINY, "full": clip.PUBLISHED["vit_b_32"]}
RANK = 4
IMAGES = 2


def seen_bytes(architecture: Architecture, name: str) -> Tensor:
    """Bytes by formula, [images, 3, size, size]."""
    return ((clip.pixels(architecture, name, IMAGES) + 1) * 128).floor().to(torch.uint8)


def texts(architecture: Architecture) -> list[list[int]]:
    """As many as fit into the context."""
    return [text for text in clip.texts(architecture) if len(text) <= architecture.context_length]


def read(architecture: Architecture) -> Tensor:
    return clip.padded(texts(architecture), architecture.context_length)


def open_clip_config(architecture: Architecture, head_width: int, normalization, custom_text: bool) -> dict:
    mean, std = normalization
    model = {
        "embed_dim": architecture.embedding,
        "vision_cfg": {
            "image_size": architecture.image_size,
            "layers": architecture.layers,
            "width": architecture.width,
            "head_width": head_width,
            "patch_size": architecture.patch_size,
        },
        "text_cfg": {
            "context_length": architecture.context_length,
            "vocab_size": architecture.vocabulary_size,
            "width": architecture.text_width,
            "heads": architecture.text_heads,
            "layers": architecture.text_layers,
        },
    }
    if custom_text:
        model["custom_text"] = True
    return {"model_cfg": model, "preprocess_cfg": {"mean": mean, "std": std}}


def open_clip_case(name: str, architecture: Architecture, head_width: int, normalization, custom: bool, out: Path):
    folder = out / name
    folder.mkdir(exist_ok=True)
    state = clip_model.openai_state(architecture)
    if custom:
        outside = ("visual.", "logit_scale")
        state = {key if key.startswith(outside) else f"text.{key}": value for key, value in state.items()}
    config = open_clip_config(architecture, head_width, normalization, custom)
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    torch.save({key: value.half() for key, value in state.items()}, folder / "open_clip_pytorch_model.bin")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    pixels = preprocess.transforms[-1](seen_bytes(architecture, name).float() / 255)
    with torch.no_grad():
        seen = model.encode_image(pixels, normalize=True)
        said = model.encode_text(read(architecture), normalize=True)
    cases.write_tensors(out / f"{name}.safetensors", {"images": seen, "texts": said})
    return {"name": name, "file": name, "architecture": described(architecture), "texts": texts(architecture)}


def described(architecture: Architecture) -> dict:
    return {"image_size": architecture.image_size}


def factors(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LoRA factors by formula of all that PAC-S++ has them of."""
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
    """CLIP with LoRA factors beside its weights, as the PAC-S++ scorer computes it; ``mlp`` says whether theirs count."""

    def __init__(self, architecture: Architecture, state: dict[str, Tensor], mlp: bool):
        self.architecture, self.state, self.mlp = architecture, state, mlp

    def linear(self, x: Tensor, weight: str, bias: str, stem: str, counts: bool = True) -> Tensor:
        y = functional.linear(x, self.state[weight], self.state[bias])
        if counts:
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
        parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joined.chunk(3, dim=-1)]
        context = functional.scaled_dot_product_attention(*parts, is_causal=causal).transpose(1, 2).flatten(2)
        out = f"{attn}.out_proj"
        x = x + self.linear(context, f"{out}.weight", f"{out}.bias", f"{out}.")
        fc, proj = f"{name}.mlp.c_fc", f"{name}.mlp.c_proj"
        hidden = self.linear(self.norm(x, f"{name}.ln_2"), f"{fc}.weight", f"{fc}.bias", f"{fc}.", self.mlp)
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return x + self.linear(hidden, f"{proj}.weight", f"{proj}.bias", f"{proj}.", self.mlp)

    def images(self, pixels: Tensor) -> Tensor:
        state, sizes = self.state, self.architecture
        weight = state["visual.conv1.weight"]
        weight = weight + (state["visual.conv1.lora_B"] @ state["visual.conv1.lora_A"]).view(weight.shape) / RANK
        patches = functional.conv2d(pixels, weight, stride=sizes.patch_size).flatten(2).mT
        first = state["visual.class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([first, patches], dim=1) + state["visual.positional_embedding"]
        x = self.norm(x, "visual.ln_pre")
        for layer in range(sizes.layers):
            x = self.block(x, f"visual.transformer.resblocks.{layer}", sizes.heads, causal=False)
        return clip_model.unit(self.norm(x[:, 0], "visual.ln_post") @ state["visual.proj"])

    def texts(self, ids: Tensor) -> Tensor:
        state, sizes = self.state, self.architecture
        x = state["token_embedding.weight"][ids] + state["positional_embedding"]
        for layer in range(sizes.text_layers):
            x = self.block(x, f"transformer.resblocks.{layer}", sizes.text_heads, causal=True)
        x = self.norm(x, "ln_final")[torch.arange(len(ids)), ids.argmax(dim=-1)]
        return clip_model.unit(x @ state["text_projection"])


def lora_case(architecture: Architecture, out: Path) -> dict:
    name, file = "pac_s_plus_plus", "pac_s_plus_plus.pth"
    state = clip_model.openai_state(architecture)
    state |= factors(state)
    state = {key: value.half() for key, value in state.items()}
    torch.save({"state_dict": state}, out / file)
    state = {key: value.float() for key, value in state.items()}
    mean, std = (torch.tensor(values)[:, None, None] for values in clip_model.OPENAI)
    pixels = (seen_bytes(architecture, name).float() / 255 - mean) / std
    tensors = {}
    with torch.no_grad():
        for reading, mlp in (("as_released", False), ("merged", True)):
            scorer = LoraScorer(architecture, state, mlp)
            tensors |= {f"{reading}.images": scorer.images(pixels), f"{reading}.texts": scorer.texts(read(architecture))}
    cases.write_tensors(out / f"{name}.safetensors", tensors)
    apart = float((tensors["as_released.texts"] - tensors["merged.texts"]).abs().max())
    print(f"{name}: the two readings are {apart:.3f} apart")
    return {"name": name, "file": file, "architecture": described(architecture), "texts": texts(architecture)}


def main() -> None:
    arguments = cases.arguments(__doc__)
    models = [open_clip_case(name, *model, arguments.out) for name, model in OPEN_CLIP[arguments.size].items()]
    described = {
        "versions": cases.versions(),
        "images": IMAGES,
        "open_clip": models,
        "lora": lora_case(LORA[arguments.size], arguments.out),
    }
    cases.write_json(arguments.out / "published_clips.json", described)


if __name__ == "__main__":
    main()
