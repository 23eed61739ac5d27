"""CLIP with weights by formula, in two independent implementations: transformers and open_clip.

Parameters have OpenAI's names, like in open_clip; ``hugging_face_state`` translates them.
"""

from dataclasses import dataclass

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

import formula

# Mean and standard deviation of OpenAI's preprocessing.
OPENAI_NORMALIZATION = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP.

    The vision encoder is a transformer if ``blocks`` is empty, else a modified ResNet with this
    many blocks in each stage.
    """

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


def open_clip_model(config: ClipConfig) -> CLIP:
    """Builds open_clip's model without setting the weights."""
    vision = CLIPVisionCfg(
        layers=config.blocks or config.layers,
        width=config.width,
        head_width=64,
        patch_size=config.patch_size,
        image_size=config.image_size,
    )
    text = CLIPTextCfg(
        context_length=config.context_length,
        vocab_size=config.vocabulary_size,
        width=config.text_width,
        heads=config.text_heads,
        layers=config.text_layers,
    )
    return CLIP(config.embedding, vision, text, quick_gelu=True).eval()


def openai_state(config: ClipConfig, prefix: str = "") -> dict[str, Tensor]:
    """Returns all parameters, and running statistics of batch norms, under OpenAI's names."""
    with torch.device("meta"):
        state_dict = open_clip_model(config).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}
    return formula.state(shapes, prefix)


def build_open_clip(config: ClipConfig, state: dict[str, Tensor]) -> CLIP:
    """Builds open_clip's model with the given parameters, which may lack batch norms' counters."""
    model = open_clip_model(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + unexpected
    if wrong:
        raise ValueError(f"missing or unexpected parameters: {wrong}")
    return model


def build_transformers(config: ClipConfig, state: dict[str, Tensor]) -> CLIPModel:
    """Builds transformers' model, which supports vision transformers only."""
    vision = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        projection_dim=config.embedding,
    )
    text = CLIPTextConfig(
        vocab_size=config.vocabulary_size,
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_heads,
        max_position_embeddings=config.context_length,
        projection_dim=config.embedding,
        bos_token_id=config.vocabulary_size - 2,
        eos_token_id=config.vocabulary_size - 1,
        pad_token_id=0,
    )
    clip_config = CLIPConfig.from_text_vision_configs(text, vision, projection_dim=config.embedding)
    clip_config._attn_implementation = "eager"
    with torch.device("meta"):
        model = CLIPModel(clip_config)
    model = model.to_empty(device="cpu").eval()
    fill_position_ids(model)
    model.load_state_dict(hugging_face_state(state), strict=True)
    return model


def fill_position_ids(model: torch.nn.Module) -> None:
    """Fills the position ids, which the weights lack and which ``to_empty`` clears."""
    for name, buffer in model.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[-1]).expand_as(buffer))


BLOCK_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
OTHER_NAMES = {
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
PROJECTION_NAMES = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def hugging_face_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Translates to transformers' names; splits q, k and v, and transposes projections."""
    result: dict[str, Tensor] = {}
    for name, value in state.items():
        if name in OTHER_NAMES:
            result[OTHER_NAMES[name]] = value
        elif name in PROJECTION_NAMES:
            result[PROJECTION_NAMES[name]] = value.T.contiguous()
        else:
            result.update(block_parameter(name, value))
    return result


def block_parameter(name: str, value: Tensor) -> dict[str, Tensor]:
    tower, _, rest = name.partition("transformer.resblocks.")
    layer, _, rest = rest.partition(".")
    prefix = f"{'vision_model' if tower else 'text_model'}.encoder.layers.{layer}."
    if rest.startswith("attn.in_proj_"):
        kind = rest.removeprefix("attn.in_proj_")
        return {f"{prefix}self_attn.{projection}_proj.{kind}": third for projection, third in zip("qkv", value.chunk(3))}
    module, _, kind = rest.rpartition(".")
    return {f"{prefix}{BLOCK_NAMES[module]}.{kind}": value}


@dataclass(frozen=True)
class Outputs:
    """Hidden states [images, tokens, width]; unit embeddings."""

    hidden: Tensor
    images: Tensor
    texts: Tensor


def normalize(embeddings: Tensor) -> Tensor:
    return embeddings / embeddings.norm(dim=-1, keepdim=True)


def transformers_outputs(model: CLIPModel, pixels: Tensor, ids: Tensor) -> Outputs:
    """Computes the outputs with transformers. Hidden states are before the post layer norm."""
    with torch.no_grad():
        hidden = model.vision_model(pixels).last_hidden_state
        return Outputs(hidden, normalize(model.get_image_features(pixels)), normalize(model.get_text_features(ids)))


def open_clip_outputs(model: CLIP, pixels: Tensor, ids: Tensor) -> Outputs:
    """Computes the outputs with open_clip.

    Hidden states of a ResNet are the inputs of the attention pool, row by row; those of a
    transformer are as in ``transformers_outputs``.
    """
    captured: list[Tensor] = []
    is_resnet = hasattr(model.visual, "layer4")
    hooked_module = model.visual.layer4 if is_resnet else model.visual.transformer
    handle = hooked_module.register_forward_hook(lambda _, __, output: captured.append(output))
    with torch.no_grad():
        images, texts = model.encode_image(pixels, normalize=True), model.encode_text(ids, normalize=True)
    handle.remove()
    return Outputs(captured[0].flatten(2).mT if is_resnet else captured[0], images, texts)
