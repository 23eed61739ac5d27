//! CLIP (Radford et al. 2021): the captioner's eyes and, trained or fine-tuned as an evaluator, the judge of captions.
//!
//! Parameter names are those of OpenAI's release, which PAC-S ships too.

mod text;
mod transformer;
mod vision;

use runfile::Preset;
use tch::{Device, Kind, Tensor};

pub use text::Text;
pub use vision::Vision;

use crate::nn::{Builder, Parameters};

/// Sizes of the two towers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pixels on a side.
    pub image_size: i64,
    /// Pixels on a side of a patch.
    pub patch_size: i64,
    /// Width, layers and heads of the vision tower.
    pub vision: Tower,
    /// Width, layers and heads of the text tower.
    pub text: Tower,
    /// Most tokens of a text, begin and end included.
    pub context_length: i64,
    /// Tokens known.
    pub vocabulary_size: i64,
    /// Width of the space that images and texts share.
    pub embedding: i64,
}

/// Size of a transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tower {
    /// Width of the residual stream.
    pub width: i64,
    /// Residual blocks.
    pub layers: i64,
    /// Attention heads.
    pub heads: i64,
}

impl Config {
    /// The named size, for a vocabulary of `vocabulary_size` tokens.
    #[must_use]
    pub fn preset(preset: Preset, vocabulary_size: i64) -> Self {
        match preset {
            Preset::Tiny => Self {
                image_size: 64,
                patch_size: 16,
                vision: Tower { width: 96, layers: 3, heads: 4 },
                text: Tower { width: 96, layers: 2, heads: 4 },
                context_length: 48,
                vocabulary_size,
                embedding: 96,
            },
            // ViT-B/32.
            Preset::Dico => Self {
                image_size: 224,
                patch_size: 32,
                vision: Tower { width: 768, layers: 12, heads: 12 },
                text: Tower { width: 512, layers: 12, heads: 8 },
                context_length: 77,
                vocabulary_size,
                embedding: 512,
            },
        }
    }

    /// Positions of the vision tower's output: the class token and the patches.
    #[must_use]
    pub fn vision_tokens(&self) -> i64 {
        (self.image_size / self.patch_size).pow(2) + 1
    }
}

/// Both towers and the temperature that they were trained with.
pub struct Clip {
    /// Images to hidden states and embeddings.
    pub vision: Vision,
    /// Texts to embeddings.
    pub text: Text,
    logit_scale: Tensor,
    parameters: Parameters,
}

impl Clip {
    /// A model with parameters drawn from `seed`.
    #[must_use]
    pub fn new(config: &Config, seed: u64, device: Device) -> Self {
        let mut builder = Builder::new(seed, device);
        let vision = Vision::new(&mut builder, config);
        let text = Text::new(&mut builder, config);
        // The authors start at a temperature of 0.07.
        let logit_scale = builder.constant("logit_scale", &[], (1.0_f64 / 0.07).ln());
        Self { vision, text, logit_scale, parameters: builder.finish() }
    }

    /// All parameters.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// All parameters, to start or stop training.
    pub fn parameters_mut(&mut self) -> &mut Parameters {
        &mut self.parameters
    }

    /// Factor from cosine to logit, a scalar; clipped at 100 as the authors do.
    pub fn logit_scale(&self) -> Tensor {
        self.logit_scale.clamp_max(100_f64.ln()).exp()
    }
}

/// PAC-S without its text prefix, as DiCO's reward uses it: 2 max(cos, 0) (Sarto et al. 2023). Both `[.., embedding]`, unit
/// length.
pub fn pac_s(images: &Tensor, texts: &Tensor) -> Tensor {
    (images * texts).sum_dim_intlist(-1, false, Kind::Float).clamp_min(0.0) * 2.0
}

/// Scales vectors to unit length.
pub(crate) fn unit(x: &Tensor) -> Tensor {
    x / x.square().sum_dim_intlist(-1, true, Kind::Float).sqrt()
}
