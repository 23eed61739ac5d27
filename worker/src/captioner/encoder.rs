//! The captioner's encoder: a BERT over the vision encoder's hidden states.

use config::ProjectionInit;
use tch::Tensor;
use weights::CaptionerConfig;

use super::initialization::CaptionerInit;
use crate::nn::{DropoutMode, Embedding, LayerNorm, Linear, ParameterBuilder, attention, merge_heads, split_heads};

/// The epsilon of BERT's layer norms (`layer_norm_eps` in transformers).
const LAYER_NORM_EPSILON: f64 = 1e-12;

/// The linear projection of the vision encoder's hidden states
/// (`encoder.vis_enc_to_enc_proj`) and the BERT (`encoder.encoder.*`).
pub struct Encoder {
    projection: Linear,
    position: Embedding,
    /// BERT's embeddings of token types. All hidden states have type 0.
    token_type: Embedding,
    norm: LayerNorm,
    layers: Vec<EncoderLayer>,
}

/// A layer of the BERT (`BertLayer` in transformers).
struct EncoderLayer {
    heads: i64,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

impl Encoder {
    pub fn new(builder: &mut ParameterBuilder, sizes: &CaptionerConfig, initial: CaptionerInit) -> Self {
        let [vision_width, width, positions] =
            [sizes.vision_width, sizes.width, sizes.encoder_positions].map(|size| size as i64);
        let mut table = |part: &str, entries, deviation| {
            Embedding::new(builder, &format!("encoder.encoder.embeddings.{part}"), entries, width, deviation)
        };
        let position = table("position_embeddings", positions, initial.position_deviation);
        let token_type = table("token_type_embeddings", 2, initial.weight_deviation);
        let name = "encoder.vis_enc_to_enc_proj";
        Self {
            projection: match initial.projection {
                ProjectionInit::Normal => Linear::new(builder, name, vision_width, width, initial.weight_deviation),
                ProjectionInit::Uniform => Linear::with_uniform_init(builder, name, vision_width, width),
            },
            position,
            token_type,
            norm: LayerNorm::new(builder, "encoder.encoder.embeddings.LayerNorm", width, LAYER_NORM_EPSILON),
            layers: (0..sizes.encoder_layers)
                .map(|i| EncoderLayer::new(builder, &format!("encoder.encoder.encoder.layer.{i}"), sizes, initial))
                .collect(),
        }
    }

    /// Maps the vision encoder's hidden states `[images, tokens, vision width]` to `[images,
    /// tokens, width]`.
    pub fn forward(&self, vision: &Tensor, mode: DropoutMode) -> Tensor {
        let x = self.projection.forward(vision)
            + self.position.first_rows(vision.size()[1])
            + self.token_type.first_rows(1);
        let x = mode.dropout(self.norm.forward(&x));
        self.layers.iter().fold(x, |x, layer| layer.forward(&x, mode))
    }
}

impl EncoderLayer {
    fn new(builder: &mut ParameterBuilder, name: &str, sizes: &CaptionerConfig, initial: CaptionerInit) -> Self {
        let (width, inner) = (sizes.width as i64, sizes.encoder_inner as i64);
        let mut linear = |part: &str, inputs, outputs| {
            Linear::new(builder, &format!("{name}.{part}"), inputs, outputs, initial.weight_deviation)
        };
        let [query, key, value] =
            ["query", "key", "value"].map(|part| linear(&format!("attention.self.{part}"), width, width));
        let attention_output = linear("attention.output.dense", width, width);
        let intermediate = linear("intermediate.dense", width, inner);
        let output = linear("output.dense", inner, width);
        Self {
            heads: sizes.heads as i64,
            query,
            key,
            value,
            attention_output,
            attention_norm: LayerNorm::new(
                builder,
                &format!("{name}.attention.output.LayerNorm"),
                width,
                LAYER_NORM_EPSILON,
            ),
            intermediate,
            output,
            output_norm: LayerNorm::new(builder, &format!("{name}.output.LayerNorm"), width, LAYER_NORM_EPSILON),
        }
    }

    fn forward(&self, x: &Tensor, mode: DropoutMode) -> Tensor {
        let [query, key, value] =
            [&self.query, &self.key, &self.value].map(|linear| split_heads(&linear.forward(x), self.heads));
        let attended = merge_heads(&attention(&query, &key, &value, None, mode));
        let x = self.attention_norm.forward(&(x + mode.dropout(self.attention_output.forward(&attended))));
        let hidden = self.intermediate.forward(&x).gelu("none");
        self.output_norm.forward(&(&x + mode.dropout(self.output.forward(&hidden))))
    }
}
