//! The captioner of the DiCO release: a projection of CLIP's frozen hidden states, a BERT encoder
//! over them, and a GPT-2 decoder that attends to the encoder.
//!
//! Parameter names are those of the Hugging Face folders of the DiCO release, without the vision
//! encoder, which is frozen and belongs to [`crate::clip`].
//!
//! | file | content |
//! |---|---|
//! | `encoder` | the BERT encoder |
//! | `decoder` | the GPT-2 decoder, and its step-by-step decoding with a KV cache |
//! | `initialization` | the standard deviations of the initial parameters |
//! | `generation_config` | the settings of beam search and sampling |
//! | [`beam`] | beam search |
//! | `sample` | sampling of captions |
//! | `caption_batch` | captions as prefix trees, for computing their log-probabilities |

pub mod beam;
mod caption_batch;
mod decoder;
mod encoder;
mod generation_config;
#[cfg(test)]
pub(crate) mod golden;
mod initialization;
mod sample;

use std::collections::BTreeMap;

use config::{Preset, ProjectionInit};
use tch::{Tensor, no_grad};
pub use weights::CaptionerConfig;

pub use caption_batch::{CaptionBatch, TokenValues};
pub use generation_config::GenerationConfig;

use crate::nn::{self, Backend, DropoutMode, ParameterBuilder, ParameterMismatchError, Parameters};
use beam::{Hypothesis, NextTokenLogits};
use decoder::Decoder;
use encoder::Encoder;
use initialization::CaptionerInit;

/// The config of a captioner that is trained from scratch. `vision_width` and
/// `vision_sequence_length` are the width and the number of the vision encoder's hidden states,
/// `vocabulary_size` includes the begin, end and pad tokens.
#[must_use]
pub fn preset(
    preset: Preset,
    vision_width: usize,
    vision_sequence_length: usize,
    vocabulary_size: usize,
) -> CaptionerConfig {
    let encoder_positions = vision_sequence_length.max(512);
    match preset {
        Preset::Tiny => CaptionerConfig {
            vision_width,
            width: 96,
            heads: 4,
            encoder_layers: 2,
            encoder_inner: 384,
            encoder_positions,
            decoder_layers: 2,
            decoder_inner: 384,
            positions: Preset::Tiny.captioner_positions(),
            vocabulary_size,
        },
        Preset::Dico => CaptionerConfig {
            vision_width,
            width: 512,
            heads: 8,
            encoder_layers: 3,
            encoder_inner: 2048,
            encoder_positions,
            decoder_layers: 3,
            decoder_inner: 2048,
            positions: Preset::Dico.captioner_positions(),
            vocabulary_size,
        },
    }
}

/// The captioner: encoder and decoder. The frozen vision encoder is separate.
pub struct Captioner {
    config: CaptionerConfig,
    encoder: Encoder,
    decoder: Decoder,
    parameters: Parameters,
}

impl Captioner {
    /// A model with parameters initialized from `seed`.
    #[must_use]
    pub fn new(config: CaptionerConfig, projection: ProjectionInit, seed: u64, backend: impl Into<Backend>) -> Self {
        let initial = CaptionerInit::of(&config, projection);
        Self::build(config, initial, ParameterBuilder::new(seed, backend))
    }

    /// A model with zeros as parameters, for a caller that overwrites them.
    fn uninitialized(config: CaptionerConfig, backend: impl Into<Backend>) -> Self {
        let initial = CaptionerInit::of(&config, ProjectionInit::default());
        Self::build(config, initial, ParameterBuilder::uninitialized(backend))
    }

    /// A model whose parameters are copied from `values`, by name.
    ///
    /// # Errors
    /// Lists all parameters that are missing, unknown, or of a wrong shape.
    pub fn from_tensors(
        config: CaptionerConfig,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, ParameterMismatchError> {
        let captioner = Self::uninitialized(config, backend);
        captioner.parameters.load(values)?;
        Ok(captioner)
    }

    /// A frozen copy of the model with its present parameters: the reference policy.
    #[must_use]
    pub fn frozen_copy(&self) -> Self {
        let copy = Self::uninitialized(self.config.clone(), self.parameters.backend());
        no_grad(|| copy.parameters.flat().shallow_clone().copy_(self.parameters.flat()));
        copy.parameters.refresh_working_copies();
        copy
    }

    fn build(config: CaptionerConfig, initial: CaptionerInit, mut builder: ParameterBuilder) -> Self {
        let encoder = Encoder::new(&mut builder, &config, initial);
        let decoder = Decoder::new(&mut builder, &config, initial);
        Self { config, encoder, decoder, parameters: builder.finish() }
    }

    /// The model's config.
    #[must_use]
    pub fn config(&self) -> &CaptionerConfig {
        &self.config
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

    /// The log-probability of each token after the begin token. `vision` are the vision encoder's
    /// hidden states, `[images, vision tokens, vision width]`.
    ///
    /// Common prefixes of an image's captions are computed once. Padding is not projected onto the
    /// vocabulary, and no log-softmax is stored for the backward pass.
    #[must_use]
    pub fn token_log_probabilities(&self, vision: &Tensor, captions: &CaptionBatch, mode: DropoutMode) -> TokenValues {
        let memory = self.encoder.forward(vision, mode);
        let hidden = self.decoder.forward(&captions.inputs, &memory, mode).flatten(0, 1);
        let hidden = hidden.index_select(0, &captions.node_indices);
        let (nodes, targets) = (&captions.prediction_nodes, &captions.prediction_targets);
        let log_probabilities = nn::token_log_probabilities(&hidden, self.decoder.output_projection(), nodes, targets);
        captions.per_token(&log_probabilities)
    }

    /// Samples `generation.beams` captions of each image with libtorch's random generator. `vision`
    /// is `[images, vision tokens, vision width]`.
    #[must_use]
    pub fn sample(&self, vision: &Tensor, generation: &GenerationConfig, mode: DropoutMode) -> Vec<Vec<Hypothesis>> {
        self.generate(vision, generation, mode, sample::sample)
    }

    /// The `generation.beams` best captions of each image by beam search, best first. `vision` is
    /// `[images, vision tokens, vision width]`. With dropout, libtorch's generator draws the masks
    /// of the encoder once per image, and the masks of the decoder for each token of each beam.
    #[must_use]
    pub fn beam_search(
        &self,
        vision: &Tensor,
        generation: &GenerationConfig,
        mode: DropoutMode,
    ) -> Vec<Vec<Hypothesis>> {
        self.generate(vision, generation, mode, beam::beam_search)
    }

    fn generate(
        &self,
        vision: &Tensor,
        generation: &GenerationConfig,
        mode: DropoutMode,
        algorithm: fn(&mut dyn NextTokenLogits, usize, &GenerationConfig) -> Vec<Vec<Hypothesis>>,
    ) -> Vec<Vec<Hypothesis>> {
        no_grad(|| {
            let memory = self.encoder.forward(vision, mode);
            let (beams, max_length) = (generation.beams as i64, generation.max_length as i64);
            let mut model = self.decoder.start_decoding(&memory, beams, max_length, mode);
            algorithm(&mut *model, vision.size()[0] as usize, generation)
        })
    }
}
