use tch::Tensor;

use super::{Config, transformer::Transformer, unit};
use crate::nn::{Builder, LayerNorm};

/// The vision transformer, `visual.*`.
pub struct Vision {
    patch_size: i64,
    conv1: Tensor,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    ln_pre: LayerNorm,
    transformer: Transformer,
    ln_post: LayerNorm,
    projection: Tensor,
}

impl Vision {
    pub(super) fn new(builder: &mut Builder, config: &Config) -> Self {
        let (width, patch) = (config.vision.width, config.patch_size);
        let scale = (width as f64).powf(-0.5);
        // PyTorch's convolutions start uniform within 1 / sqrt(fan-in); this is the normal of the same variance.
        let fan_in = (3 * patch * patch) as f64;
        Self {
            patch_size: patch,
            conv1: builder.normal("visual.conv1.weight", &[width, 3, patch, patch], (3.0 * fan_in).powf(-0.5)),
            class_embedding: builder.normal("visual.class_embedding", &[width], scale),
            positional_embedding: builder.normal(
                "visual.positional_embedding",
                &[config.vision_tokens(), width],
                scale,
            ),
            ln_pre: LayerNorm::new(builder, "visual.ln_pre", width, 1e-5),
            transformer: Transformer::new(builder, "visual.transformer", config.vision),
            ln_post: LayerNorm::new(builder, "visual.ln_post", width, 1e-5),
            projection: builder.normal("visual.proj", &[width, config.embedding], scale),
        }
    }

    /// Normalised pixels `[batch, 3, size, size]` to hidden states `[batch, 1 + patches, width]`, before the last layer
    /// norm: what the captioner sees.
    pub fn hidden(&self, images: &Tensor) -> Tensor {
        let patches =
            images.conv2d(&self.conv1, None::<&Tensor>, self.patch_size, 0, 1, 1).flatten(2, -1).transpose(1, 2);
        let (batch, _, width) = patches.size3().expect("patches are [batch, patches, width]");
        let class = self.class_embedding.expand([batch, 1, width], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.positional_embedding;
        self.transformer.forward(self.ln_pre.forward(&x), None)
    }

    /// Hidden states to unit embeddings `[batch, embedding]`.
    pub fn embed(&self, hidden: &Tensor) -> Tensor {
        unit(&self.ln_post.forward(&hidden.select(1, 0)).matmul(&self.projection))
    }
}
