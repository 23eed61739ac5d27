"""Loads the exported evaluators with `torch.load`, computes with transformers' CLIP, and compares cosines with those
of `worker score`.

Usage: check_evaluators.py FOLDER, which captioners.py and evaluators.py have filled.
"""

import json
import pathlib
import sys

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, CLIPConfig, CLIPModel

TOLERANCE = 1e-4
PREFIX = "A photo depicts "
# PAC-S is twice the cosine, where that is above zero.
FACTOR = 2
# Fewer scores above zero would prove little.
MIN_POSITIVE = 7

Tensors = dict[str, Tensor]


def loralib(state: Tensors) -> Tensors:
    """The weights as loralib computes them with its default alpha of 1, without the factors."""
    merged = {name: weight for name, weight in state.items() if "lora_" not in name}
    for name, a in state.items():
        if name.endswith("lora_A"):
            stem = name.removesuffix("lora_A")
            weight = f"{stem}weight" if stem.endswith(".") else stem.removesuffix("_")
            # The factors of a convolution have a rank for each row of its kernel.
            side = merged[weight].shape[2] if merged[weight].dim() == 4 else 1
            product = state[f"{stem}lora_B"] @ a / (a.shape[0] // side)
            merged[weight] = merged[weight] + product.view(merged[weight].shape)
    return merged


def block(state: Tensors, ours: str, theirs: str) -> Tensors:
    """A block of a transformer under transformers' names."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    found = {
        f"{theirs}.{there}.{kind}": state[f"{ours}.{here}.{kind}"]
        for here, there in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        for part, rows in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3)):
            found[f"{theirs}.self_attn.{part}_proj.{kind}"] = rows
    return found


def renamed(state: Tensors, layers: int, text_layers: int) -> Tensors:
    """OpenAI's tensors under transformers' names."""
    vision, text = "vision_model", "text_model"
    found = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        f"{vision}.embeddings.class_embedding": state["visual.class_embedding"],
        f"{vision}.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        f"{vision}.embeddings.position_embedding.weight": state["visual.positional_embedding"],
        f"{text}.embeddings.token_embedding.weight": state["token_embedding.weight"],
        f"{text}.embeddings.position_embedding.weight": state["positional_embedding"],
    }
    norms = {"visual.ln_pre": f"{vision}.pre_layrnorm", "visual.ln_post": f"{vision}.post_layernorm"}
    norms |= {"ln_final": f"{text}.final_layer_norm"}
    for here, there in norms.items():
        found |= {f"{there}.{kind}": state[f"{here}.{kind}"] for kind in ("weight", "bias")}
    for ours, theirs, count in (("visual.transformer", vision, layers), ("transformer", text, text_layers)):
        for layer in range(count):
            found |= block(state, f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}")
    return found


def model(state: Tensors, settings: dict) -> CLIPModel:
    """The CLIP whose weights these are: sizes from their shapes, heads as the export said."""
    assert settings["family"] == "openai", settings
    count = lambda prefix: len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
    layers, text_layers = count("visual.transformer.resblocks."), count("transformer.resblocks.")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    positions, _ = state["visual.positional_embedding"].shape
    vocabulary, text_width = state["token_embedding.weight"].shape
    context, _ = state["positional_embedding"].shape
    common = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
    vision = common | {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": settings["vision_heads"],
        "patch_size": patch,
        "image_size": round((positions - 1) ** 0.5) * patch,
    }
    text = common | {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": text_layers,
        "num_attention_heads": settings["text_heads"],
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
        "eos_token_id": 49407,
    }
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=state["visual.proj"].shape[1])
    clip = CLIPModel(config).eval()
    clip.load_state_dict(renamed(state, layers, text_layers))
    return clip


def cosines(clip: CLIPModel, folder: pathlib.Path, candidates: dict[str, str]) -> list[float]:
    """Of each image and its caption. The captioner's processor has CLIP's tokens and its own pixels, of the same size."""
    processor = AutoProcessor.from_pretrained(folder / "my-dico", trust_remote_code=True)
    images = [Image.open(folder / "images" / name) for name in candidates]
    pixels = processor(images=images, return_tensors="pt").pixel_values
    texts = [processor.tokenizer(PREFIX + caption, return_tensors="pt").input_ids for caption in candidates.values()]
    with torch.no_grad():
        seen = torch.nn.functional.normalize(clip.get_image_features(pixels), dim=-1)
        said = torch.cat([clip.get_text_features(tokens) for tokens in texts])
        return (seen * torch.nn.functional.normalize(said, dim=-1)).sum(dim=-1).tolist()


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    expected = json.loads((folder / "evaluators.json").read_text())
    candidates = expected["candidates"]
    found = {}
    for layout, evaluator in expected["evaluators"].items():
        state = torch.load(folder / f"{layout}.pth", weights_only=True)["state_dict"]
        has_factors = any("lora_" in name for name in state)
        assert has_factors == (layout == "apart"), f"{layout}.pth: factors: {has_factors}"
        clip = model(loralib(state), evaluator["settings"])
        found[layout] = cosines(clip, folder, candidates)
        scores = evaluator["pac_s"]
        positive = sum(score > 0 for score in scores.values())
        assert positive >= MIN_POSITIVE, f"{layout}: only {positive} of {len(scores)} scores are above zero"
        far = max(abs(scores[image] / FACTOR - max(cosine, 0)) for image, cosine in zip(candidates, found[layout]))
        assert far < TOLERANCE, f"{layout}: cosines differ by {far}"
        print(f"transformers {transformers.__version__}: {layout}.pth: {len(scores)} cosines at most {far:.1e} apart")
    # The factors count: without them it is another model.
    plain = {name: weight for name, weight in state.items() if "lora_" not in name}
    without = cosines(model(plain, evaluator["settings"]), folder, candidates)
    apart = max(abs(a - b) for a, b in zip(without, found["apart"]))
    assert apart > 100 * TOLERANCE, f"without the factors cosines differ by {apart} only"


if __name__ == "__main__":
    main()
