//! The vision transformer of CLIP.

use tch::Tensor;
use weights::Activation;
use weights::clip::LoraTarget;

use crate::clip::transformer::Transformer;
use crate::nn::{GraphedFunction, LayerNorm, LoraWeight, ParameterBuilder};

/// A vision transformer up to its last block (`VisionTransformer` in OpenAI's `clip/model.py`).
pub struct VisionTransformer {
    patch_size: i64,
    conv1: LoraWeight,
    class_embedding: Tensor,
    positional_embedding: Tensor,
    ln_pre: LayerNorm,
    transformer: Transformer,
    /// Runs [`Self::compute`] as a CUDA graph.
    graphed: GraphedFunction,
}

impl VisionTransformer {
    /// An encoder for this image size and patch size in pixels; `sizes` are width, number of layers
    /// and number of heads.
    pub fn new(
        builder: &mut ParameterBuilder,
        (image_size, patch_size): (usize, usize),
        sizes: (usize, usize, usize),
        activation: Activation,
    ) -> Self {
        let (width, patch) = (sizes.0 as i64, patch_size as i64);
        let tokens = (image_size / patch_size).pow(2) as i64 + 1;
        let scale = (width as f64).powf(-0.5);
        // PyTorch initializes convolutions uniformly in -1 / sqrt(fan-in)..1 / sqrt(fan-in); this
        // normal distribution has the same variance.
        let fan_in = (3 * patch * patch) as f64;
        Self {
            patch_size: patch,
            conv1: builder.lora_convolution(
                "visual.conv1.weight",
                [width, 3, patch, patch],
                (3.0 * fan_in).powf(-0.5),
                LoraTarget::PatchEmbedding,
            ),
            class_embedding: builder.normal("visual.class_embedding", &[width], scale),
            positional_embedding: builder.normal("visual.positional_embedding", &[tokens, width], scale),
            ln_pre: LayerNorm::new(builder, "visual.ln_pre", width, 1e-5),
            transformer: Transformer::new(builder, "visual.transformer", sizes, activation),
            graphed: GraphedFunction::default(),
        }
    }

    /// Maps pixels `[batch, 3, size, size]` to hidden states `[batch, tokens, width]`.
    pub fn hidden_states(&self, images: &Tensor) -> Tensor {
        self.graphed.apply(images, |images| self.compute(images))
    }

    fn compute(&self, images: &Tensor) -> Tensor {
        let patches = images
            .conv2d(&self.conv1.convolution_weight(), None::<&Tensor>, self.patch_size, 0, 1, 1)
            .flatten(2, -1)
            .transpose(1, 2);
        let (batch, _, width) = patches.size3().expect("patches are [batch, patches, width]");
        let class = self.class_embedding.expand([batch, 1, width], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.positional_embedding;
        self.transformer.forward(self.ln_pre.forward(&x), None)
    }
}

/// The pooling of a vision transformer: layer norm and projection of the class token.
pub struct ClassTokenPool {
    ln_post: LayerNorm,
    projection: Tensor,
}

impl ClassTokenPool {
    pub fn new(builder: &mut ParameterBuilder, width: usize, embedding: usize) -> Self {
        let width = width as i64;
        Self {
            ln_post: LayerNorm::new(builder, "visual.ln_post", width, 1e-5),
            projection: builder.normal("visual.proj", &[width, embedding as i64], (width as f64).powf(-0.5)),
        }
    }

    /// Maps hidden states `[batch, tokens, width]` to embeddings `[batch, embedding]`.
    pub fn embed(&self, hidden: &Tensor) -> Tensor {
        self.ln_post.forward(&hidden.select(1, 0)).matmul(&self.projection)
    }
}
