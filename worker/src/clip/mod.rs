//! CLIP (Radford et al. 2021): its vision encoder provides the captioner's input, and a trained or
//! fine-tuned CLIP is the evaluator that scores captions.
//!
//! Parameter names are those of OpenAI's release, which the weights of PAC-S also use.
//!
//! | file | content |
//! |---|---|
//! | `vision` | the vision encoders: vision transformer and modified ResNet |
//! | `text` | the text encoder |
//! | `transformer` | the transformer blocks of both encoders |
//! | `trainable_parts` | which parameters of an evaluator a stage trains, and their memory layout |

#[cfg(test)]
pub(crate) mod golden;
mod text;
mod trainable_parts;
mod transformer;
mod vision;

use std::collections::BTreeMap;

use config::{Preset, TextReading, Trainable};
use tch::{Kind, Tensor};
use tokenizer::Vocabulary;
use weights::LoraConfig;
use weights::clip::{LORA_ALPHA, TextConfig, VisionBackbone};
pub use weights::{ClipConfig, VisionConfig};

pub use text::TextModel;
use trainable_parts::ParameterGroup;
pub use trainable_parts::TrainableParts;
pub use vision::{ImagePooling, VisionModel};

use crate::nn::{Backend, ParameterBuilder, ParameterMismatchError, Parameters};

/// The config of a model that is trained from scratch, for a vocabulary of `vocabulary_size`
/// tokens, begin and end tokens included.
#[must_use]
pub fn preset(preset: Preset, vocabulary_size: usize) -> ClipConfig {
    match preset {
        Preset::Tiny => {
            let vision = VisionBackbone::Transformer { patch_size: 16, width: 96, layers: 3, heads: 4 };
            let text = TextConfig { width: 96, layers: 2, heads: 4, context_length: 48, vocabulary_size };
            ClipConfig::new(64, vision, text, Preset::Tiny.evaluator_embedding_size())
        }
        // ViT-B/32.
        Preset::Dico => {
            let vision = VisionBackbone::Transformer { patch_size: 32, width: 768, layers: 12, heads: 12 };
            let text = TextConfig { width: 512, layers: 12, heads: 8, context_length: 77, vocabulary_size };
            ClipConfig::new(224, vision, text, Preset::Dico.evaluator_embedding_size())
        }
    }
}

/// A frozen vision encoder without a text encoder: the captioner reads its hidden states.
pub struct VisionEncoder {
    config: VisionConfig,
    vision: VisionModel,
    parameters: Parameters,
}

impl VisionEncoder {
    /// An encoder whose parameters are copied from `values`, by name; further values, such as the
    /// text encoder of a complete CLIP, are ignored.
    ///
    /// # Errors
    /// Lists all parameters that are missing or of a wrong shape.
    pub fn new(
        config: VisionConfig,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, ParameterMismatchError> {
        let mut builder = ParameterBuilder::uninitialized(backend);
        let vision = VisionModel::new(&mut builder, &config);
        let parameters = builder.finish();
        let needed = parameters
            .named_parameters()
            .filter_map(|(name, _)| Some((name.to_owned(), values.get(name)?.shallow_clone())));
        parameters.load(&needed.collect())?;
        Ok(Self { config, vision, parameters })
    }

    /// The encoder's config.
    #[must_use]
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// See [`VisionModel::hidden_states`].
    pub fn hidden_states(&self, images: &Tensor) -> Tensor {
        self.vision.hidden_states(images)
    }

    /// The encoder's parameters.
    #[must_use]
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

/// A CLIP: both encoders, and the temperature that they were trained with.
pub struct Clip {
    config: ClipConfig,
    /// The vision encoder: images to hidden states.
    pub vision: VisionModel,
    image_pooling: ImagePooling,
    /// The text encoder: tokens to embeddings.
    pub text: TextModel,
    /// The natural logarithm of [`Clip::logit_scale()`].
    logit_scale: Tensor,
    parameters: Parameters,
}

impl Clip {
    /// A model with parameters initialized from `seed`.
    #[must_use]
    pub fn new(config: ClipConfig, seed: u64, backend: impl Into<Backend>) -> Self {
        Self::build(config, ParameterBuilder::new(seed, backend), &TrainableParts::default())
    }

    /// Like [`Clip::new`], with the memory layout for a run that trains the parts
    /// `trainable_parts`.
    #[must_use]
    pub fn trainable(
        config: ClipConfig,
        seed: u64,
        backend: impl Into<Backend>,
        trainable_parts: &TrainableParts,
    ) -> Self {
        let builder = ParameterBuilder::new(seed, backend).with_lora(trainable_parts.lora.as_ref(), seed);
        Self::build(config, builder, trainable_parts)
    }

    /// A model whose parameters are copied from `values`, by name, with the memory layout for a run
    /// that trains the parts `trainable_parts`. LoRA factors are initialized from `seed`.
    ///
    /// # Errors
    /// Lists all parameters that are missing, unknown, or of a wrong shape.
    pub fn trainable_from_tensors(
        config: ClipConfig,
        values: &BTreeMap<String, Tensor>,
        seed: u64,
        backend: impl Into<Backend>,
        trainable_parts: &TrainableParts,
    ) -> Result<Self, ParameterMismatchError> {
        let builder = ParameterBuilder::uninitialized(backend).with_lora(trainable_parts.lora.as_ref(), seed);
        let clip = Self::build(config, builder, trainable_parts);
        // LoRA factors and their alpha keep their initial values.
        let lora = clip
            .parameters
            .named_parameters()
            .filter(|(name, _)| ParameterGroup::of(name) >= ParameterGroup::LoraFactors);
        let lora = lora.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()));
        let values = values.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).chain(lora);
        clip.parameters.load(&values.collect())?;
        Ok(clip)
    }

    /// A model whose parameters are copied from `values`, by name.
    ///
    /// # Errors
    /// Lists all parameters that are missing, unknown, or of a wrong shape.
    pub fn from_tensors(
        config: ClipConfig,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, ParameterMismatchError> {
        Self::trainable_from_tensors(config, values, 0, backend, &TrainableParts::default())
    }

    fn build(config: ClipConfig, mut builder: ParameterBuilder, trainable_parts: &TrainableParts) -> Self {
        let vision = VisionModel::new(&mut builder, &config.vision_config());
        let image_pooling = ImagePooling::new(&mut builder, &config);
        let text = TextModel::new(&mut builder, &config);
        // The initial temperature is 0.07 (`CLIP.__init__` in OpenAI's `clip/model.py`).
        let logit_scale = builder.constant("logit_scale", &[], (1.0_f64 / 0.07).ln());
        if let Some(LoraConfig { alpha, .. }) = trainable_parts.lora {
            _ = builder.constant(LORA_ALPHA, &[], alpha);
        }
        let parameters = builder.finish_in_groups(|name| trainable_parts.group(name) as u8);
        Self { config, vision, image_pooling, text, logit_scale, parameters }
    }

    /// Enables gradients of the parameters that a stage trains, and freezes the others.
    pub fn start_training(&mut self, trainable: &Trainable) {
        self.parameters.start_training(|name| ParameterGroup::of(name).is_trained(trainable));
    }

    /// The model's config.
    #[must_use]
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Converts hidden states of [`Clip::vision`], `[batch, tokens, width]`, to unit embeddings
    /// `[batch, embedding]`.
    pub fn image_embeddings(&self, hidden: &Tensor) -> Tensor {
        l2_normalize(&self.image_pooling.embed(hidden))
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

    /// The factor from cosine to logit, a scalar. At most 100, as the paper clips it (Radford et
    /// al. 2021, section 2.5).
    pub fn logit_scale(&self) -> Tensor {
        self.logit_scale.clamp_max(100_f64.ln()).exp()
    }
}

/// `factor` max(cos, 0): CLIP-S with factor 2.5 (Hessel et al. 2021, section 3), PAC-S with factor
/// 2 (Sarto et al. 2023, section 3). Both arguments are unit embeddings, `[.., embedding]`; the
/// result is `[..]`.
pub fn clip_score(images: &Tensor, texts: &Tensor, factor: f64) -> Tensor {
    (images * texts).sum_dim_intlist(-1, false, Kind::Float).clamp_min(0.0) * factor
}

/// Tokenizes a text for an evaluator: begin token, tokens, end token; at most `max_length` in all.
#[must_use]
pub fn tokenize(vocabulary: &Vocabulary, reading: TextReading, text: &str, max_length: usize) -> Vec<i64> {
    match reading {
        TextReading::ClipTokenize => vocabulary.encode_cleaned(text, max_length),
        TextReading::AsIs => vocabulary.encode(text, max_length),
    }
}

/// Scales vectors `[.., width]` to unit length.
pub(crate) fn l2_normalize(x: &Tensor) -> Tensor {
    x / x.square().sum_dim_intlist(-1, true, Kind::Float).sqrt()
}
