"""Compares exported evaluators, in transformers' CLIP, with the cosines of `worker score`.

Usage: check_evaluators.py FOLDER. captioners.py and evaluators.py have written FOLDER.
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
# PAC-S is 2 max(cosine, 0).
PAC_S_FACTOR = 2
# Scores of zero compare nothing, so at least this many must be positive.
MIN_POSITIVE = 7

Tensors = dict[str, Tensor]


def merge_lora(state: Tensors) -> Tensors:
    """Merges LoRA factors into the weights as loralib does, with its default alpha of 1."""
    merged = {name: weight for name, weight in state.items() if "lora_" not in name}
    for name, a in state.items():
        if name.endswith("lora_A"):
            stem = name.removesuffix("lora_A")
            weight = f"{stem}weight" if stem.endswith(".") else stem.removesuffix("_")
            # The rank of a convolution's factors is multiplied by its kernel size.
            side = merged[weight].shape[2] if merged[weight].dim() == 4 else 1
            product = state[f"{stem}lora_B"] @ a / (a.shape[0] // side)
            merged[weight] = merged[weight] + product.view(merged[weight].shape)
    return merged


def convert_block(state: Tensors, ours: str, theirs: str) -> Tensors:
    """Returns a transformer block's weights under transformers' names."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    names |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    converted = {
        f"{theirs}.{there}.{kind}": state[f"{ours}.{here}.{kind}"]
        for here, there in names.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        for part, rows in zip("qkv", state[f"{ours}.attn.in_proj_{kind}"].chunk(3)):
            converted[f"{theirs}.self_attn.{part}_proj.{kind}"] = rows
    return converted


def convert_names(state: Tensors, layers: int, text_layers: int) -> Tensors:
    """Returns OpenAI's tensors under transformers' names."""
    vision, text = "vision_model", "text_model"
    converted = {
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
        converted |= {f"{there}.{kind}": state[f"{here}.{kind}"] for kind in ("weight", "bias")}
    for ours, theirs, count in (("visual.transformer", vision, layers), ("transformer", text, text_layers)):
        for layer in range(count):
            converted |= convert_block(state, f"{ours}.resblocks.{layer}", f"{theirs}.encoder.layers.{layer}")
    return converted


def build_clip(state: Tensors, settings: dict) -> CLIPModel:
    """Builds the CLIP of these weights, with sizes from shapes and heads from `settings`."""
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
    clip.load_state_dict(convert_names(state, layers, text_layers))
    return clip


def cosines(clip: CLIPModel, folder: pathlib.Path, candidates: dict[str, str]) -> list[float]:
    """Returns the cosine of each image and its caption.

    Uses the processor of the captioner my-dico: its tokenizer is CLIP's, and its image size is the
    evaluator's.
    """
    processor = AutoProcessor.from_pretrained(folder / "my-dico", trust_remote_code=True)
    images = [Image.open(folder / "images" / name) for name in candidates]
    pixels = processor(images=images, return_tensors="pt").pixel_values
    texts = [processor.tokenizer(PREFIX + caption, return_tensors="pt").input_ids for caption in candidates.values()]
    with torch.no_grad():
        image_embeddings = torch.nn.functional.normalize(clip.get_image_features(pixels), dim=-1)
        text_embeddings = torch.cat([clip.get_text_features(tokens) for tokens in texts])
        return (image_embeddings * torch.nn.functional.normalize(text_embeddings, dim=-1)).sum(dim=-1).tolist()


def main() -> None:
    folder = pathlib.Path(sys.argv[1])
    expected = json.loads((folder / "evaluators.json").read_text())
    candidates = expected["candidates"]
    cosines_by_layout = {}
    for layout, evaluator in expected["evaluators"].items():
        state = torch.load(folder / f"{layout}.pth", weights_only=True)["state_dict"]
        has_factors = any("lora_" in name for name in state)
        assert has_factors == (layout == "apart"), f"{layout}.pth: factors: {has_factors}"
        clip = build_clip(merge_lora(state), evaluator["settings"])
        cosines_by_layout[layout] = cosines(clip, folder, candidates)
        scores = evaluator["pac_s"]
        positive = sum(score > 0 for score in scores.values())
        assert positive >= MIN_POSITIVE, f"{layout}: only {positive} of {len(scores)} scores are above zero"
        difference = max(abs(scores[image] / PAC_S_FACTOR - max(cosine, 0)) for image, cosine in zip(candidates, cosines_by_layout[layout]))
        assert difference < TOLERANCE, f"{layout}: cosines differ by {difference}"
        print(f"transformers {transformers.__version__}: {layout}.pth: {len(scores)} cosines differ by at most {difference:.1e}")
    # Without the factors the cosines must differ: otherwise the comparison would prove nothing.
    plain = {name: weight for name, weight in state.items() if "lora_" not in name}
    without = cosines(build_clip(plain, evaluator["settings"]), folder, candidates)
    largest = max(abs(a - b) for a, b in zip(without, cosines_by_layout["apart"]))
    assert largest > 100 * TOLERANCE, f"without the factors cosines differ by only {largest}"


if __name__ == "__main__":
    main()
