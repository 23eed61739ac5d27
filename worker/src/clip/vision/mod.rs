//! CLIP's vision encoders: images to hidden states, for a captioner, and hidden states to
//! embeddings, for an evaluator.

mod resnet;
mod transformer;

use tch::Tensor;
use weights::VisionConfig;
use weights::clip::{ClipConfig, VisionBackbone};

use self::resnet::{AttentionPool, ModifiedResNet};
use self::transformer::{ClassTokenPool, VisionTransformer};
use crate::nn::ParameterBuilder;

/// A vision encoder, parameters `visual.*`.
pub enum VisionModel {
    /// A vision transformer.
    Transformer(VisionTransformer),
    /// CLIP's modified ResNet.
    ResNet(ModifiedResNet),
}

impl VisionModel {
    pub(super) fn new(builder: &mut ParameterBuilder, config: &VisionConfig) -> Self {
        match config.backbone {
            VisionBackbone::Transformer { patch_size, width, layers, heads } => {
                let sizes = (width, layers, heads);
                let image_and_patch = (config.image_size, patch_size);
                Self::Transformer(VisionTransformer::new(builder, image_and_patch, sizes, config.activation))
            }
            VisionBackbone::ResNet { blocks, width, .. } => Self::ResNet(ModifiedResNet::new(builder, blocks, width)),
        }
    }

    /// Maps normalized pixels `[batch, 3, size, size]` to hidden states `[batch, tokens, width]`:
    /// the class token and patches of a transformer before the last layer norm, or the cells of a
    /// ResNet's last feature map, row by row.
    pub fn hidden_states(&self, images: &Tensor) -> Tensor {
        match self {
            Self::Transformer(model) => model.hidden_states(images),
            Self::ResNet(model) => model.hidden_states(images),
        }
    }
}

/// The pooling of hidden states to an image embedding.
pub enum ImagePooling {
    /// The class token of a vision transformer.
    ClassToken(ClassTokenPool),
    /// Attention over the feature map of a ResNet.
    Attention(AttentionPool),
}

impl ImagePooling {
    pub(super) fn new(builder: &mut ParameterBuilder, config: &ClipConfig) -> Self {
        let embedding = config.embedding;
        match config.vision {
            VisionBackbone::Transformer { width, .. } => {
                Self::ClassToken(ClassTokenPool::new(builder, width, embedding))
            }
            VisionBackbone::ResNet { heads, .. } => {
                let (width, tokens) = (config.vision_width(), config.vision_sequence_length());
                Self::Attention(AttentionPool::new(builder, (width, tokens, heads), embedding))
            }
        }
    }

    /// Maps hidden states `[batch, tokens, width]` to embeddings `[batch, embedding]`, which are
    /// not normalized.
    pub fn embed(&self, hidden: &Tensor) -> Tensor {
        match self {
            Self::ClassToken(pool) => pool.embed(hidden),
            Self::Attention(pool) => pool.embed(hidden),
        }
    }
}
