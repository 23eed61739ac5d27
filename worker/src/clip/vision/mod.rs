//! CLIP's vision encoders: images to hidden states, for a captioner, and hidden states to
//! embeddings, for an evaluator.

mod resnet;
mod transformer;

use tch::Tensor;
use weights::VisionArchitecture;
use weights::clip::{self as architecture, Architecture};

use self::resnet::{AttentionPool, ModifiedResNet};
use self::transformer::{ClassToken, VisionTransformer};
use crate::nn::Builder;

/// A vision encoder, parameters `visual.*`.
pub enum Vision {
    /// A vision transformer.
    Transformer(VisionTransformer),
    /// CLIP's modified ResNet.
    ResNet(ModifiedResNet),
}

impl Vision {
    pub(super) fn new(builder: &mut Builder, tower: &VisionArchitecture) -> Self {
        match tower.vision {
            architecture::Vision::Transformer { patch_size, width, layers, heads } => {
                let sizes = (width, layers, heads);
                let image = (tower.image_size, patch_size);
                Self::Transformer(VisionTransformer::new(builder, image, sizes, tower.activation))
            }
            architecture::Vision::ResNet { blocks, width, .. } => {
                Self::ResNet(ModifiedResNet::new(builder, blocks, width))
            }
        }
    }

    /// Maps normalized pixels `[batch, 3, size, size]` to hidden states `[batch, tokens, width]`:
    /// the class token and patches of a transformer before the last layer norm, or the cells of a
    /// ResNet's last feature map, row by row.
    pub fn hidden(&self, images: &Tensor) -> Tensor {
        match self {
            Self::Transformer(tower) => tower.hidden(images),
            Self::ResNet(tower) => tower.hidden(images),
        }
    }
}

/// The pooling of hidden states to an embedding.
pub enum Pool {
    /// By a transformer's class token.
    ClassToken(ClassToken),
    /// By attention over a ResNet's whole feature map.
    Attention(AttentionPool),
}

impl Pool {
    pub(super) fn new(builder: &mut Builder, architecture: &Architecture) -> Self {
        let embedding = architecture.embedding;
        match architecture.vision {
            architecture::Vision::Transformer { width, .. } => {
                Self::ClassToken(ClassToken::new(builder, width, embedding))
            }
            architecture::Vision::ResNet { heads, .. } => {
                let (width, tokens) = (architecture.vision_width(), architecture.vision_tokens());
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
