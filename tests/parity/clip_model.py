"""CLIP by formula, in two implementations that know nothing of each other: transformers and open_clip.

The parameters are named as OpenAI names them, which open_clip does too; ``hugging_face_state`` translates.
"""

from dataclasses import dataclass

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

import formula

# Mean and standard deviation of OpenAI's preprocessing.
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class Architecture:
    """A vision transformer where ``blocks`` is empty, else a modified ResNet with as many blocks in each stage."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    blocks: tuple[int, ...]
    text_width: int
    text_layers: int
    context_length: int
    vocabulary_size: int
    embedding: int

    @property
    def heads(self) -> int:
        return (self.width * 32 if self.blocks else self.width) // 64

    @property
    def text_heads(self) -> int:
        return self.text_width // 64


def open_clip_model(architecture: Architecture) -> CLIP:
    """open_clip's model; weights yet to be set."""
    vision = CLIPVisionCfg(
        layers=architecture.blocks or architecture.layers,
        width=architecture.width,
        head_width=64,
        patch_size=architecture.patch_size,
        image_size=architecture.image_size,
    )
    text = CLIPTextCfg(
        context_length=architecture.context_length,
        vocab_size=architecture.vocabulary_size,
        width=architecture.text_width,
        heads=architecture.text_heads,
        layers=architecture.text_layers,
    )
    return CLIP(architecture.embedding, vision, text, quick_gelu=True).eval()


def openai_state(architecture: Architecture, prefix: str = "") -> dict[str, Tensor]:
    """All parameters, and the running statistics of batch norms, under OpenAI's names."""
    with torch.device("meta"):
        described = open_clip_model(architecture).state_dict()
    shapes = {name: tuple(value.shape) for name, value in described.items() if not name.endswith("num_batches_tracked")}
    return formula.state(shapes, prefix)


def with_open_clip(architecture: Architecture, state: dict[str, Tensor]) -> CLIP:
    """open_clip's model with the given parameters; complete but for the counters of batch norms."""
    model = open_clip_model(architecture)
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise ValueError(f"not open_clip's names: {wrong}")
    return model


def with_transformers(architecture: Architecture, state: dict[str, Tensor]) -> CLIPModel:
    """transformers' model, vision transformers only, with the given parameters."""
    vision = CLIPVisionConfig(
        hidden_size=architecture.width,
        intermediate_size=4 * architecture.width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        image_size=architecture.image_size,
        patch_size=architecture.patch_size,
        projection_dim=architecture.embedding,
    )
    text = CLIPTextConfig(
        vocab_size=architecture.vocabulary_size,
        hidden_size=architecture.text_width,
        intermediate_size=4 * architecture.text_width,
        num_hidden_layers=architecture.text_layers,
        num_attention_heads=architecture.text_heads,
        max_position_embeddings=architecture.context_length,
        projection_dim=architecture.embedding,
        bos_token_id=architecture.vocabulary_size - 2,
        eos_token_id=architecture.vocabulary_size - 1,
        pad_token_id=0,
    )
    config = CLIPConfig.from_text_vision_configs(text, vision, projection_dim=architecture.embedding)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = CLIPModel(config)
    model = model.to_empty(device="cpu").eval()
    fill_position_ids(model)
    model.load_state_dict(hugging_face_state(state), strict=True)
    return model


def fill_position_ids(model: torch.nn.Module) -> None:
    """These buffers are not stored with the weights, and ``to_empty`` has emptied them."""
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))


BLOCK = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OUTSIDE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def hugging_face_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same parameters under transformers' names: q, k and v apart, projections transposed."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in OUTSIDE:
            result[OUTSIDE[name]] = value
        elif name in PROJECTIONS:
            result[PROJECTIONS[name]] = value.T.contiguous()
        else:
            result.update(block_parameter(name, value))
    return result


def block_parameter(name: str, value: Tensor) -> dict[str, Tensor]:
    tower, _, rest = name.partition("transformer.resblocks.")
    layer, _, rest = rest.partition(".")
    prefix = f"{'vision_model' if tower else 'text_model'}.encoder.layers.{layer}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{prefix}self_attn.{part}_proj.{kind}": third for part, third in zip("qkv", value.chunk(3))}
    module, _, kind = rest.rpartition(".")
    return {f"{prefix}{BLOCK[module]}.{kind}": value}


@dataclass(frozen=True)
class Outputs:
    """Hidden states [images, tokens, width]; unit embeddings."""

    hidden: Tensor
    images: Tensor
    texts: Tensor


def unit(embeddings: Tensor) -> Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def by_transformers(model: CLIPModel, pixels: Tensor, ids: Tensor) -> Outputs:
    """Hidden states before the post layer norm, of all tokens."""
    with torch.no_grad():
        hidden = model.vision_model(pixels).last_hidden_state
        return Outputs(hidden, unit(model.get_image_features(pixels)), unit(model.get_text_features(ids)))


def by_open_clip(model: CLIP, pixels: Tensor, ids: Tensor) -> Outputs:
    """Hidden states of a ResNet: what the attention pool reads, row by row. Of a transformer: as above."""
    captured: list[Tensor] = []
    resnet = hasattr(model.visual, "layer4")
    watched = model.visual.layer4 if resnet else model.visual.transformer
    handle = watched.register_forward_hook(lambda _, __, output: captured.append(output))
    with torch.no_grad():
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    handle.remove()
    return Outputs(captured[0].flatten(2).mT if resnet else captured[0], images, texts)
