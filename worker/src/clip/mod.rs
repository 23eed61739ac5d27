//! CLIP (Radford et al. 2021): its vision encoder provides the captioner's input, and a trained or
//! fine-tuned CLIP is the evaluator that scores captions.
//!
//! Parameter names are those of OpenAI's release, which PAC-S ships too.

#[cfg(test)]
pub(crate) mod golden;
mod text;
mod trainable;
mod transformer;
mod vision;

use std::collections::BTreeMap;

use config::{Preset, TextReading, Trainable};
use tch::{Kind, Tensor};
use tokenizer::Vocabulary;
use weights::Lora;
use weights::clip::{LORA_ALPHA, Text as TextArchitecture, Vision as VisionKind};
pub use weights::{Architecture, VisionArchitecture};

pub use text::Text;
use trainable::Group;
pub use trainable::Trainables;
pub use vision::{Pool, Vision};

use crate::nn::{Backend, Builder, Mismatch, Parameters};

/// The config of a model that is trained from scratch, for a vocabulary of `vocabulary_size`
/// tokens.
#[must_use]
pub fn preset(preset: Preset, vocabulary_size: usize) -> Architecture {
    match preset {
        Preset::Tiny => {
            let vision = VisionKind::Transformer { patch_size: 16, width: 96, layers: 3, heads: 4 };
            let text = TextArchitecture { width: 96, layers: 2, heads: 4, context_length: 48, vocabulary_size };
            Architecture::new(64, vision, text, Preset::Tiny.evaluator_embedding())
        }
        // ViT-B/32.
        Preset::Dico => {
            let vision = VisionKind::Transformer { patch_size: 32, width: 768, layers: 12, heads: 12 };
            let text = TextArchitecture { width: 512, layers: 12, heads: 8, context_length: 77, vocabulary_size };
            Architecture::new(224, vision, text, Preset::Dico.evaluator_embedding())
        }
    }
}

/// A frozen vision encoder without a text encoder: the captioner's feature source.
pub struct VisionEncoder {
    architecture: VisionArchitecture,
    vision: Vision,
    parameters: Parameters,
}

impl VisionEncoder {
    /// An encoder with the parameters `values`, which may be those of a whole CLIP.
    ///
    /// # Errors
    /// All missing parameters and all with a wrong shape.
    pub fn new(
        architecture: VisionArchitecture,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, Mismatch> {
        let mut builder = Builder::blank(backend);
        let vision = Vision::new(&mut builder, &architecture);
        let parameters = builder.finish();
        let needed =
            parameters.named().filter_map(|(name, _)| Some((name.to_owned(), values.get(name)?.shallow_clone())));
        parameters.load(&needed.collect())?;
        Ok(Self { architecture, vision, parameters })
    }

    /// The encoder's config.
    #[must_use]
    pub fn architecture(&self) -> &VisionArchitecture {
        &self.architecture
    }

    /// See [`Vision::hidden`].
    pub fn hidden(&self, images: &Tensor) -> Tensor {
        self.vision.hidden(images)
    }

    /// The encoder's parameters.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

/// Both encoders, and the temperature that they were trained with.
pub struct Clip {
    architecture: Architecture,
    /// The vision encoder: images to hidden states.
    pub vision: Vision,
    pool: Pool,
    /// The text encoder: tokens to embeddings.
    pub text: Text,
    logit_scale: Tensor,
    parameters: Parameters,
}

impl Clip {
    /// A model with parameters initialized from `seed`.
    #[must_use]
    pub fn new(architecture: Architecture, seed: u64, backend: impl Into<Backend>) -> Self {
        Self::build(architecture, Builder::new(seed, backend), &Trainables::default())
    }

    /// The same, with the memory layout for a run that trains these parts of it.
    #[must_use]
    pub fn trainable(architecture: Architecture, seed: u64, backend: impl Into<Backend>, parts: &Trainables) -> Self {
        let builder = Builder::new(seed, backend).with_lora(parts.lora.as_ref(), seed);
        Self::build(architecture, builder, parts)
    }

    /// A model with the parameters `values`, and the memory layout for a run that trains these
    /// parts of it. LoRA factors are initialized from `seed`.
    ///
    /// # Errors
    /// All parameters that are missing, unknown, or of a wrong shape.
    pub fn trainable_with(
        architecture: Architecture,
        values: &BTreeMap<String, Tensor>,
        seed: u64,
        backend: impl Into<Backend>,
        parts: &Trainables,
    ) -> Result<Self, Mismatch> {
        let builder = Builder::blank(backend).with_lora(parts.lora.as_ref(), seed);
        let clip = Self::build(architecture, builder, parts);
        let adaptation = clip.parameters.named().filter(|(name, _)| Group::of(name) >= Group::LoraFactors);
        let adaptation = adaptation.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
        let values = values.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).chain(adaptation);
        clip.parameters.load(&values.collect())?;
        Ok(clip)
    }

    /// A model with the parameters `values`.
    ///
    /// # Errors
    /// All parameters that are missing, unknown, or of a wrong shape.
    pub fn with(
        architecture: Architecture,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, Mismatch> {
        Self::trainable_with(architecture, values, 0, backend, &Trainables::default())
    }

    fn build(architecture: Architecture, mut builder: Builder, parts: &Trainables) -> Self {
        let vision = Vision::new(&mut builder, &architecture.tower());
        let pool = Pool::new(&mut builder, &architecture);
        let text = Text::new(&mut builder, &architecture);
        // The authors initialize the temperature with 0.07.
        let logit_scale = builder.constant("logit_scale", &[], (1.0_f64 / 0.07).ln());
        if let Some(Lora { alpha, .. }) = parts.lora {
            _ = builder.constant(LORA_ALPHA, &[], alpha);
        }
        let parameters = builder.finish_in_groups(|name| parts.group(name) as u8);
        Self { architecture, vision, pool, text, logit_scale, parameters }
    }

    /// Enables gradients of the parameters that a stage trains; the rest is frozen.
    pub fn start_training(&mut self, trainable: &Trainable) {
        self.parameters.start_training(|name| Group::of(name).is_trained(trainable));
    }

    /// The model's config.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Converts hidden states of [`Clip::vision`] to unit embeddings `[batch, embedding]`.
    pub fn embed(&self, hidden: &Tensor) -> Tensor {
        unit(&self.pool.embed(hidden))
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

    /// The factor from cosine to logit, a scalar; at most 100, as in the authors' code.
    pub fn logit_scale(&self) -> Tensor {
        self.logit_scale.clamp_max(100_f64.ln()).exp()
    }
}

/// `factor` max(cos, 0): CLIP-S (Hessel et al. 2021) with factor 2.5, PAC-S (Sarto et al. 2023)
/// with 2. Both arguments are unit embeddings, `[.., embedding]`.
pub fn score(images: &Tensor, texts: &Tensor, factor: f64) -> Tensor {
    (images * texts).sum_dim_intlist(-1, false, Kind::Float).clamp_min(0.0) * factor
}

/// Tokenizes a text for an evaluator: begin token, tokens, end token; at most `most` in all.
#[must_use]
pub fn read(vocabulary: &Vocabulary, reading: TextReading, text: &str, most: usize) -> Vec<i64> {
    match reading {
        TextReading::ClipTokenize => vocabulary.encode_cleaned(text, most),
        TextReading::AsIs => vocabulary.encode(text, most),
    }
}

/// Scales vectors to unit length.
pub(crate) fn unit(x: &Tensor) -> Tensor {
    x / x.square().sum_dim_intlist(-1, true, Kind::Float).sqrt()
}
