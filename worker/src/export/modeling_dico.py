"""A captioner trained with DiCO (arXiv 2408.14547), for transformers.

The encoder consists of a CLIP vision encoder, a linear projection and a BERT. The decoder is a
GPT-2 with cross-attention. All layers are those of transformers; this file connects them.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    tokens = model.generate(pixel_values=pixels)
"""

import torch
from torch import nn
from transformers import (
    AutoConfig,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput

try:
    # transformers 4: its `CLIPVisionModel` nests this class under `vision_model`.
    from transformers.models.clip.modeling_clip import CLIPVisionTransformer as VisionEncoder
except ImportError:
    from transformers import CLIPVisionModel as VisionEncoder


class DicoEncoderConfig(PretrainedConfig):
    """`encoder` of config.json: the configurations of the vision encoder and of the BERT."""

    # The `model_type` in the config.json of the folders that the DiCO authors published.
    model_type = "vision-encoder-encoder"
    sub_configs = {"vision_encoder": CLIPVisionConfig, "encoder": BertConfig}

    def __init__(self, vision_encoder=None, encoder=None, **settings):
        vision = dict(vision_encoder or {})
        # Some published folders have the configuration of a complete CLIP.
        self.vision_encoder = CLIPVisionConfig(**vision.get("vision_config", vision))
        self.encoder = BertConfig(**(encoder or {}))
        super().__init__(**(settings | {"hidden_size": self.encoder.hidden_size}))


# `VisionEncoderDecoderConfig` finds the class of its `encoder` by `model_type`.
AutoConfig.register(DicoEncoderConfig.model_type, DicoEncoderConfig, exist_ok=True)


class DicoConfig(VisionEncoderDecoderConfig):
    """config.json: the configuration of a `VisionEncoderDecoderModel`."""


class NestedVisionEncoder(nn.Module):
    """A vision encoder whose parameter names begin with `vision_model`."""

    def __init__(self, config):
        super().__init__()
        self.vision_model = VisionEncoder(config)

    def forward(self, pixel_values):
        return self.vision_model(pixel_values)


class DicoEncoder(PreTrainedModel):
    """Encodes pixels [images, 3, side, side] as hidden states [images, tokens, width] for the decoder."""

    config_class = DicoEncoderConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        # `worker export` writes `vision_model_nested` if the parameter names in the published folder
        # begin with `vision_model`.
        encoder_class = NestedVisionEncoder if getattr(config, "vision_model_nested", False) else VisionEncoder
        self.vision_encoder = encoder_class(config.vision_encoder)
        self.vis_enc_to_enc_proj = nn.Linear(config.vision_encoder.hidden_size, config.encoder.hidden_size)
        self.encoder = BertModel(config.encoder)
        self.post_init()

    def forward(self, pixel_values, **_):
        # The vision encoder is frozen, also if the other layers are trained.
        with torch.no_grad():
            # All tokens, before the last layer norm.
            hidden_states = self.vision_encoder(pixel_values).last_hidden_state
        return BaseModelOutput(self.encoder(inputs_embeds=self.vis_enc_to_enc_proj(hidden_states)).last_hidden_state)


class DicoCaptioner(VisionEncoderDecoderModel):
    """Encoder and decoder. `generate(pixel_values=...)` returns the tokens of captions."""

    config_class = DicoConfig

    def __init__(self, config):
        super().__init__(config, DicoEncoder(config.encoder), GPT2LMHeadModel(config.decoder))
