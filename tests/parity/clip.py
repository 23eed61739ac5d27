"""Expected results of CLIP, and files of its weights as the world's writers write them.

Writes NAME.safetensors and an entry of clip.json for each case, and the files of ``files``.
"""

from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import cases
import clip_model
import formula
from clip_model import Architecture, Outputs

SMALL = {
    "vit": Architecture(48, 16, 128, 2, (), 64, 2, 77, 49408, 32),
    "resnet": Architecture(64, 0, 16, 0, (2, 1, 1, 1), 64, 1, 77, 49408, 32),
}
PUBLISHED = {
    "vit_b_32": Architecture(224, 32, 768, 12, (), 512, 12, 77, 49408, 512),
    "vit_b_16": Architecture(224, 16, 768, 12, (), 512, 12, 77, 49408, 512),
    "vit_l_14": Architecture(224, 14, 1024, 24, (), 768, 12, 77, 49408, 768),
    "vit_l_14_336": Architecture(336, 14, 1024, 24, (), 768, 12, 77, 49408, 768),
    "rn50": Architecture(224, 0, 64, 0, (3, 4, 6, 3), 512, 12, 77, 49408, 1024),
}
# Its weights fit into a repository.
TINY = Architecture(16, 8, 64, 1, (), 64, 1, 16, 64, 32)

# Tokens of the texts, begin and end included.
TEXT_LENGTHS = (2, 3, 7, 12, 30, 77)
IMAGES = {"golden": 3, "full": 2}
# Of tokens and channels; all of them would be megabytes.
HIDDEN_STRIDES = {"golden": (1, 1), "full": (16, 32)}


def texts(architecture: Architecture) -> list[list[int]]:
    """Texts of tokens by formula between begin and end, which are the two highest."""
    begin, end = architecture.vocabulary_size - 2, architecture.vocabulary_size - 1
    result = []
    for length in TEXT_LENGTHS:
        drawn = formula.units(f"text{length}", length - 2) + 0.5
        result.append([begin, *(int(unit * begin) for unit in drawn), end])
    return result


def padded(sequences: list[list[int]], length: int) -> Tensor:
    """As OpenAI pads: with zeros."""
    return torch.tensor([sequence + [0] * (length - len(sequence)) for sequence in sequences])


def pixels(architecture: Architecture, name: str, count: int) -> Tensor:
    """Normalised pixels [count, 3, size, size]."""
    shape = (3, architecture.image_size, architecture.image_size)
    return torch.stack([formula.inputs(f"{name}.pixels{number}", shape) for number in range(count)])


def agree(first: Outputs, second: Outputs) -> float:
    """The largest difference between the embeddings of two implementations, refused where it is no rounding."""
    differences = ((first.images - second.images).abs().max(), (first.texts - second.texts).abs().max())
    largest = float(max(differences))
    if largest > 1e-5:
        raise ValueError(f"transformers and open_clip differ by {largest}")
    return largest


def compute(architecture: Architecture, seen: Tensor, read: Tensor, check: bool) -> Outputs:
    state = clip_model.openai_state(architecture)
    if architecture.blocks:
        return clip_model.by_open_clip(clip_model.with_open_clip(architecture, state), seen, read)
    outputs = clip_model.by_transformers(clip_model.with_transformers(architecture, state), seen, read)
    if check:
        agree(outputs, clip_model.by_open_clip(clip_model.with_open_clip(architecture, state), seen, read))
    return outputs


def case(name: str, architecture: Architecture, size: str, out: Path) -> dict:
    ids = texts(architecture)
    seen = pixels(architecture, name, IMAGES[size])
    outputs = compute(architecture, seen, padded(ids, architecture.context_length), check=size == "golden")
    tokens, channels = HIDDEN_STRIDES[size]
    tensors = {
        "hidden": outputs.hidden[:, ::tokens, ::channels],
        "image_embeddings": outputs.images,
        "text_embeddings": outputs.texts,
    }
    cases.write_tensors(out / f"{name}.safetensors", tensors)
    largest = float(outputs.hidden.abs().max())
    cosines = outputs.images @ outputs.texts.T
    print(f"{name}: largest hidden {largest:.2f}, cosines {float(cosines.min()):.3f} to {float(cosines.max()):.3f}")
    described = asdict(architecture) | {"heads": architecture.heads, "text_heads": architecture.text_heads}
    return {
        "name": name,
        "architecture": described,
        "images": IMAGES[size],
        "texts": ids,
        "hidden_shape": list(outputs.hidden.shape),
        "hidden_strides": [tokens, channels],
        "hidden_max": largest,
    }


class Shell(nn.Module):
    """A tree of modules that holds parameters under given names and computes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def shell(state: dict[str, Tensor], attributes: dict[str, int]) -> Shell:
    """As OpenAI's archives: parameters below modules, and sizes as integer tensors."""
    root = Shell()
    for name, value in state.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Shell())
            module = module._modules[part]
        if last.startswith("running_"):
            module.register_buffer(last, value)
        else:
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    for name, value in attributes.items():
        root.register_buffer(name, torch.tensor(value))
    return root


def weight_files(name: str, architecture: Architecture, half: bool, out: Path) -> dict:
    """The weights by formula, rounded to f16 where ``half``, in three containers."""
    state = clip_model.openai_state(architecture)
    state = {key: value.half() if half else value for key, value in state.items()}
    attributes = {
        "input_resolution": architecture.image_size,
        "context_length": architecture.context_length,
        "vocab_size": architecture.vocabulary_size,
    }
    files = [f"{name}.pth", f"{name}.torchscript.pt"]
    torch.save({"state_dict": state}, out / files[0])
    traced = torch.jit.trace(shell(state, attributes), torch.zeros(1), check_trace=False)
    torch.jit.save(traced, out / files[1])
    if not architecture.blocks:
        model = clip_model.with_transformers(architecture, {key: value.float() for key, value in state.items()})
        model = model.half() if half else model
        files.append(f"{name}.hugging_face")
        model.save_pretrained(out / files[-1], safe_serialization=True)
    return {"name": name, "architecture": asdict(architecture), "dtype": "f16" if half else "f32", "files": files}


def main() -> None:
    arguments = cases.arguments(__doc__)
    full = arguments.size == "full"
    architectures = PUBLISHED if full else SMALL
    described = [case(name, each, arguments.size, arguments.out) for name, each in architectures.items()]
    if full:
        files = [
            weight_files("vit_b_32", PUBLISHED["vit_b_32"], False, arguments.out),
            weight_files("rn50", PUBLISHED["rn50"], True, arguments.out),
        ]
    else:
        files = [weight_files("tiny", TINY, True, arguments.out)]
    cases.write_json(arguments.out / "clip.json", {"versions": cases.versions(), "cases": described, "files": files})


if __name__ == "__main__":
    main()
