//! The transformer blocks that both of CLIP's encoders use.

use tch::Tensor;
use weights::Activation;
use weights::clip::LoraTarget::{Attention, Mlp};

use crate::nn::{
    DropoutMode, LayerNorm, Linear, LoraWeight, MixedPrecisionParameter, ParameterBuilder, attention,
    cast_attention_mask, linear, merge_heads, split_fused_projections,
};

/// A stack of pre-norm residual blocks, parameters `{name}.resblocks.*`.
pub struct Transformer {
    blocks: Vec<ResidualBlock>,
}

/// A block (`ResidualAttentionBlock` in OpenAI's `clip/model.py`): self-attention, and an MLP
/// (`c_fc`, `c_proj`).
struct ResidualBlock {
    heads: i64,
    ln_1: LayerNorm,
    in_proj_weight: LoraWeight,
    in_proj_bias: MixedPrecisionParameter,
    out_proj: Linear,
    ln_2: LayerNorm,
    c_fc: Linear,
    c_proj: Linear,
    activation: Activation,
}

impl Transformer {
    /// A stack of this width, number of layers and number of heads, initialized as in
    /// `CLIP.initialize_parameters` of OpenAI's `clip/model.py`.
    pub fn new(
        builder: &mut ParameterBuilder,
        name: &str,
        (width, layers, heads): (usize, usize, usize),
        activation: Activation,
    ) -> Self {
        let sizes = (width as i64, layers as i64, heads as i64);
        let block = |i| ResidualBlock::new(builder, &format!("{name}.resblocks.{i}"), sizes, activation);
        let blocks = (0..layers).map(block).collect();
        Self { blocks }
    }

    /// Maps `[batch, length, width]` to the same shape. `mask` `[batch, 1, length, length]` is
    /// added to the attention scores.
    pub fn forward(&self, x: Tensor, mask: Option<&Tensor>) -> Tensor {
        let mask = mask.zip(self.blocks.first());
        let mask = mask.map(|(mask, block)| cast_attention_mask(mask, block.in_proj_bias.working.kind()));
        self.blocks.iter().fold(x, |x, block| block.forward(x, mask.as_ref()))
    }
}

impl ResidualBlock {
    fn new(
        builder: &mut ParameterBuilder,
        name: &str,
        (width, layers, heads): (i64, i64, i64),
        activation: Activation,
    ) -> Self {
        // Standard deviations of the weights, under their names in `initialize_parameters`.
        let attn_std = (width as f64).powf(-0.5);
        let proj_std = attn_std * (2.0 * layers as f64).powf(-0.5);
        let fc_std = (2.0 * width as f64).powf(-0.5);
        Self {
            heads,
            ln_1: LayerNorm::new(builder, &format!("{name}.ln_1"), width, 1e-5),
            in_proj_weight: {
                let name = format!("{name}.attn.in_proj_weight");
                builder.lora_matrix(&name, [3 * width, width], attn_std, Attention)
            },
            in_proj_bias: builder.bias(&format!("{name}.attn.in_proj_bias"), 3 * width, 0.0),
            out_proj: Linear::with_lora(builder, &format!("{name}.attn.out_proj"), width, width, proj_std, Attention),
            ln_2: LayerNorm::new(builder, &format!("{name}.ln_2"), width, 1e-5),
            c_fc: Linear::with_lora(builder, &format!("{name}.mlp.c_fc"), width, 4 * width, fc_std, Mlp),
            c_proj: Linear::with_lora(builder, &format!("{name}.mlp.c_proj"), 4 * width, width, proj_std, Mlp),
            activation,
        }
    }

    fn forward(&self, x: Tensor, mask: Option<&Tensor>) -> Tensor {
        let projected = linear(&self.ln_1.forward(&x), &self.in_proj_weight.parameter(), &self.in_proj_bias);
        let [query, key, value] = split_fused_projections(&projected, self.heads);
        let x = x + self.out_proj.forward(&merge_heads(&attention(&query, &key, &value, mask, DropoutMode::Evaluate)));
        let hidden = self.c_fc.forward(&self.ln_2.forward(&x));
        let activated = match self.activation {
            Activation::QuickGelu => quick_gelu(&hidden),
            Activation::Gelu => hidden.gelu("none"),
        };
        x + self.c_proj.forward(&activated)
    }
}

/// OpenAI's approximation of the GELU, x sigmoid(1.702 x) (`QuickGELU` in `clip/model.py`).
fn quick_gelu(x: &Tensor) -> Tensor {
    x * (x * 1.702).sigmoid()
}
