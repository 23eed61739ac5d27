"""The published captioner, built from the models of transformers.

The encoder consists of CLIP's vision encoder, a projection and a BERT. transformers'
VisionEncoderDecoderModel connects it with a GPT-2. Parameter names and the nested configuration are
those of the published folders (github.com/aimagelab/DiCO).
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPVisionTransformer

import formula

# Eager attention computes the plain formula, which suits an independent result.
ATTENTION = "eager"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a captioner with its vision encoder."""

    vision_width: int
    vision_heads: int
    vision_layers: int
    image_size: int
    patch_size: int
    width: int
    heads: int
    encoder_layers: int
    encoder_inner: int
    decoder_layers: int
    positions: int
    vocabulary: int

    @property
    def vision_tokens(self) -> int:
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def begin(self) -> int:
        return self.vocabulary - 3

    @property
    def end(self) -> int:
        return self.vocabulary - 2

    @property
    def pad(self) -> int:
        return self.vocabulary - 1

    def as_dict(self) -> dict[str, int]:
        """Returns all sizes, derived ones included."""
        return asdict(self) | {name: getattr(self, name) for name in ("vision_tokens", "begin", "end", "pad")}


SMALL = Sizes(48, 2, 2, 48, 16, 64, 4, 2, 128, 2, 77, 67)
PAPER = Sizes(1024, 16, 24, 224, 14, 512, 8, 3, 2048, 3, 1024, 49409)


class EncoderConfig(PretrainedConfig):
    """``encoder`` of the published config.json."""

    model_type = "vision-encoder-encoder"
    sub_configs = {"vision_encoder": AutoConfig, "encoder": AutoConfig}

    def __init__(self, vision_encoder: dict | None = None, encoder: dict | None = None, **rest):
        super().__init__(**rest)
        self.vision_encoder = CLIPVisionConfig(**(vision_encoder or {}))
        self.encoder = BertConfig(**(encoder or {}))
        self.hidden_size = self.encoder.hidden_size


class Encoder(PreTrainedModel):
    """The encoder: frozen CLIP vision encoder, projection, and BERT."""

    config_class = EncoderConfig
    main_input_name = "pixel_values"

    def __init__(self, config: EncoderConfig):
        super().__init__(config)
        for submodel in (config.vision_encoder, config.encoder):
            submodel._attn_implementation = ATTENTION
        self.vision_encoder = CLIPVisionTransformer(config.vision_encoder)
        self.vis_enc_to_enc_proj = nn.Linear(config.vision_encoder.hidden_size, config.encoder.hidden_size)
        self.encoder = BertModel(config.encoder)

    def forward(self, pixel_values: Tensor | None = None, vision_hidden: Tensor | None = None, **_) -> BaseModelOutput:
        if vision_hidden is None:
            with torch.no_grad():
                # Before the post layer norm, all tokens.
                vision_hidden = self.vision_encoder(pixel_values).last_hidden_state
        projected = self.vis_enc_to_enc_proj(vision_hidden)
        return BaseModelOutput(self.encoder(inputs_embeds=projected).last_hidden_state)


AutoConfig.register(EncoderConfig.model_type, EncoderConfig)
AutoModel.register(EncoderConfig, Encoder)


def build_config(sizes: Sizes, bert_vocabulary: int = 30522) -> VisionEncoderDecoderConfig:
    """Builds the nested configuration like the published code."""
    vision = CLIPVisionConfig(
        hidden_size=sizes.vision_width,
        intermediate_size=4 * sizes.vision_width,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image_size,
        patch_size=sizes.patch_size,
    )
    bert = BertConfig(
        vocab_size=bert_vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.encoder_layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.encoder_inner,
        d_embed=sizes.width,
    )
    tokens = {"bos_token_id": sizes.begin, "eos_token_id": sizes.end, "pad_token_id": sizes.pad}
    gpt2 = GPT2Config(
        n_embd=sizes.width,
        n_layer=sizes.decoder_layers,
        n_head=sizes.heads,
        n_positions=sizes.positions,
        vocab_size=sizes.vocabulary,
        add_cross_attention=True,
        is_decoder=True,
        **tokens,
    )
    encoder = EncoderConfig(vision.to_dict(), bert.to_dict())
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, gpt2)
    config.decoder_start_token_id = sizes.begin
    config.tie_word_embeddings = False
    config.update(tokens)
    return config


def build(config: VisionEncoderDecoderConfig) -> VisionEncoderDecoderModel:
    """Builds the model without setting the weights, in evaluation mode (no dropout)."""
    config.decoder._attn_implementation = ATTENTION
    encoder, decoder = Encoder(config.encoder), GPT2LMHeadModel(config.decoder)
    return VisionEncoderDecoderModel(config, encoder, decoder).eval()


def is_unused(name: str) -> bool:
    """Returns whether no computation uses the parameter."""
    return name.startswith(("encoder.encoder.embeddings.word_embeddings.", "encoder.encoder.pooler."))


def parameter_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns all shapes. The tied ``decoder.lm_head.weight`` appears as ``wte.weight``."""
    return {name: tuple(value.shape) for name, value in model.named_parameters()}


def build_by_formula(sizes: Sizes, prefix: str = "", gains: dict[str, float] | None = None) -> VisionEncoderDecoderModel:
    """Builds the model with all weights by formula, those of the vision encoder included."""
    model = build(build_config(sizes, bert_vocabulary=1))
    state = formula.state(parameter_shapes(model), prefix, gains)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(state[name])
    return model


def logits(model: VisionEncoderDecoderModel, vision_hidden: Tensor, ids: Tensor) -> Tensor:
    """Returns the logits after each of ``ids`` [captions, length].

    ``vision_hidden``: vision hidden states [captions, tokens, width].
    """
    encoded = model.encoder(vision_hidden=vision_hidden)
    return model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits
