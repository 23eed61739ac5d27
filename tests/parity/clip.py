"""Expected results of CLIP, and files of its weights in the common formats.

Writes NAME.safetensors and an entry of clip.json for each case, and the weight files.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import common
import clip_model
import formula
from clip_model import ClipConfig, Outputs

SMALL = {
    "vit": ClipConfig(48, 16, 128, 2, (), 64, 2, 77, 49408, 32),
    "resnet": ClipConfig(64, 0, 16, 0, (2, 1, 1, 1), 64, 1, 77, 49408, 32),
}
PUBLISHED = {
    "vit_b_32": ClipConfig(224, 32, 768, 12, (), 512, 12, 77, 49408, 512),
    "vit_b_16": ClipConfig(224, 16, 768, 12, (), 512, 12, 77, 49408, 512),
    "vit_l_14": ClipConfig(224, 14, 1024, 24, (), 768, 12, 77, 49408, 768),
    "vit_l_14_336": ClipConfig(336, 14, 1024, 24, (), 768, 12, 77, 49408, 768),
    "rn50": ClipConfig(224, 0, 64, 0, (3, 4, 6, 3), 512, 12, 77, 49408, 1024),
}
# Small enough to commit its weight files.
TINY = ClipConfig(16, 8, 64, 1, (), 64, 1, 16, 64, 32)

# Tokens of the texts, begin and end included.
TEXT_LENGTHS = (2, 3, 7, 12, 30, 77)
IMAGES = {"golden": 3, "full": 2}
# Strides of tokens and channels, because all hidden states would take megabytes.
HIDDEN_STRIDES = {"golden": (1, 1), "full": (16, 32)}


def texts(config: ClipConfig) -> list[list[int]]:
    """Returns texts: tokens by formula between begin and end, the two highest token ids."""
    begin, end = config.vocabulary_size - 2, config.vocabulary_size - 1
    result = []
    for length in TEXT_LENGTHS:
        units = formula.units(f"text{length}", length - 2) + 0.5
        result.append([begin, *(int(unit * begin) for unit in units), end])
    return result


def pad(sequences: list[list[int]], length: int) -> Tensor:
    """Pads with zeros, like OpenAI's tokenizer."""
    return torch.tensor([sequence + [0] * (length - len(sequence)) for sequence in sequences])


def pixels(config: ClipConfig, name: str, count: int) -> Tensor:
    """Returns normalised pixels by formula, [count, 3, size, size]."""
    shape = (3, config.image_size, config.image_size)
    return torch.stack([formula.inputs(f"{name}.pixels{number}", shape) for number in range(count)])


def check_agreement(first: Outputs, second: Outputs) -> float:
    """Checks that the embeddings of two implementations agree. Returns the largest difference.

    Raises ValueError if the difference is larger than rounding.
    """
    differences = ((first.images - second.images).abs().max(), (first.texts - second.texts).abs().max())
    largest = float(max(differences))
    if largest > 1e-5:
        raise ValueError(f"transformers and open_clip differ by {largest}")
    return largest


def compute(config: ClipConfig, images: Tensor, tokens: Tensor, check: bool) -> Outputs:
    state = clip_model.openai_state(config)
    if config.blocks:
        return clip_model.open_clip_outputs(clip_model.build_open_clip(config, state), images, tokens)
    outputs = clip_model.transformers_outputs(clip_model.build_transformers(config, state), images, tokens)
    if check:
        check_agreement(outputs, clip_model.open_clip_outputs(clip_model.build_open_clip(config, state), images, tokens))
    return outputs


def case(name: str, config: ClipConfig, size: str, out: Path) -> dict:
    ids = texts(config)
    images = pixels(config, name, IMAGES[size])
    outputs = compute(config, images, pad(ids, config.context_length), check=size == "golden")
    tokens, channels = HIDDEN_STRIDES[size]
    tensors = {
        "hidden": outputs.hidden[:, ::tokens, ::channels],
        "image_embeddings": outputs.images,
        "text_embeddings": outputs.texts,
    }
    common.write_tensors(out / f"{name}.safetensors", tensors)
    largest = float(outputs.hidden.abs().max())
    cosines = outputs.images @ outputs.texts.T
    print(f"{name}: largest hidden {largest:.2f}, cosines {float(cosines.min()):.3f} to {float(cosines.max()):.3f}")
    architecture = asdict(config) | {"heads": config.heads, "text_heads": config.text_heads}
    return {
        "name": name,
        "architecture": architecture,
        "images": IMAGES[size],
        "texts": ids,
        "hidden_shape": list(outputs.hidden.shape),
        "hidden_strides": [tokens, channels],
        "hidden_max": largest,
    }


class ParameterTree(nn.Module):
    """A tree of modules with parameters under given names and no computation."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def parameter_tree(state: dict[str, Tensor], attributes: dict[str, int]) -> ParameterTree:
    """Builds a module like OpenAI's archives: parameters in modules, sizes as integer tensors."""
    root = ParameterTree()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for module_name in path:
            if module_name not in module._modules:
                module.add_module(module_name, ParameterTree())
            module = module._modules[module_name]
        if last.startswith("running_"):
            module.register_buffer(last, value)
        else:
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    for name, value in attributes.items():
        root.register_buffer(name, torch.tensor(value))
    return root


def weight_files(name: str, config: ClipConfig, half: bool, out: Path) -> dict:
    """Writes the weights by formula, in f16 if ``half``, in three formats."""
    state = clip_model.openai_state(config)
    state = {key: value.half() if half else value for key, value in state.items()}
    attributes = {
        "input_resolution": config.image_size,
        "context_length": config.context_length,
        "vocab_size": config.vocabulary_size,
    }
    files = [f"{name}.pth", f"{name}.torchscript.pt"]
    torch.save({"state_dict": state}, out / files[0])
    traced = torch.jit.trace(parameter_tree(state, attributes), torch.zeros(1), check_trace=False)
    torch.jit.save(traced, out / files[1])
    if not config.blocks:
        model = clip_model.build_transformers(config, {key: value.float() for key, value in state.items()})
        model = model.half() if half else model
        files.append(f"{name}.hugging_face")
        model.save_pretrained(out / files[-1], safe_serialization=True)
    return {"name": name, "architecture": asdict(config), "dtype": "f16" if half else "f32", "files": files}


def main() -> None:
    arguments = common.parse_arguments(__doc__)
    full = arguments.size == "full"
    configs = PUBLISHED if full else SMALL
    case_entries = [case(name, config, arguments.size, arguments.out) for name, config in configs.items()]
    if full:
        files = [
            weight_files("vit_b_32", PUBLISHED["vit_b_32"], False, arguments.out),
            weight_files("rn50", PUBLISHED["rn50"], True, arguments.out),
        ]
    else:
        files = [weight_files("tiny", TINY, True, arguments.out)]
    common.write_json(arguments.out / "clip.json", {"versions": common.versions(), "cases": case_entries, "files": files})


if __name__ == "__main__":
    main()
