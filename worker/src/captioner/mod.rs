//! The captioner of the DiCO release: CLIP's frozen hidden states, projected, a BERT encoder over them, and a GPT-2 decoder
//! that attends to the encoder.
//!
//! Parameter names are those of the released Hugging Face folders, without the vision tower, which is frozen and lives in
//! [`crate::clip`].

pub mod beam;
mod captions;
mod decoder;
mod encoder;
#[cfg(test)]
pub(crate) mod golden;
mod sample;

use std::collections::BTreeMap;

use runfile::{Decoding, Preset, ProjectionInit};
use tch::{Tensor, no_grad};
use tokenizer::Vocabulary;
pub use weights::CaptionerArchitecture;

pub use captions::{Captions, Packed};

use crate::nn::{self, Backend, Builder, Mismatch, Mode, Parameters};
use beam::{Hypothesis, Steps};
use decoder::Decoder;
use encoder::Encoder;

/// How a captioner that is trained from scratch begins.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Initial {
    /// Deviation of the weights.
    weights: f64,
    /// Deviation of the encoder's position embeddings.
    positions: f64,
    projection: ProjectionInit,
}

/// The architecture of a captioner that is trained from scratch, to see `vision_tokens` hidden states of `vision_width`.
#[must_use]
pub fn preset(
    preset: Preset,
    vision_width: usize,
    vision_tokens: usize,
    vocabulary_size: usize,
) -> CaptionerArchitecture {
    let encoder_positions = vision_tokens.max(512);
    match preset {
        Preset::Tiny => CaptionerArchitecture {
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
        Preset::Dico => CaptionerArchitecture {
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

impl Initial {
    /// 0.02 at the width of the published captioner, as BERT and GPT-2 begin, and more where it is narrower.
    fn of(architecture: &CaptionerArchitecture, projection: ProjectionInit) -> Self {
        if architecture.width >= 512 {
            return Self { weights: 0.02, positions: 0.02, projection };
        }
        // Positions as loud as the hidden states that they are added to, so that where things are is not drowned out by
        // what they are: a tower trained for minutes keeps places less well than the published ones.
        Self { weights: 0.06, positions: 0.5, projection }
    }
}

/// How captions are searched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// Beams kept, and captions returned.
    pub beams: usize,
    /// Longest caption in tokens, begin and end included.
    pub max_length: usize,
    /// Scores are divided by length to this power.
    pub length_penalty: f64,
    /// Whether the begin token counts in the length of captions that were cut at the limit, as it does in transformers until
    /// 4.35, which the DiCO release uses.
    pub begin_counts_when_cut: bool,
    /// The token that begins and the one that ends a caption.
    pub begin: i64,
    /// See `begin`.
    pub end: i64,
}

impl Search {
    /// As a run file says, for a captioner of this vocabulary.
    #[must_use]
    pub fn new(decoding: &Decoding, vocabulary: &Vocabulary) -> Self {
        Self {
            beams: decoding.beams as usize,
            max_length: decoding.max_length as usize,
            length_penalty: decoding.length_penalty,
            begin_counts_when_cut: decoding.begin_counts_when_cut,
            begin: vocabulary.begin(),
            end: vocabulary.end(),
        }
    }
}

/// Encoder and decoder.
pub struct Captioner {
    architecture: CaptionerArchitecture,
    encoder: Encoder,
    decoder: Decoder,
    parameters: Parameters,
}

impl Captioner {
    /// A model with parameters drawn from `seed`.
    #[must_use]
    pub fn new(
        architecture: CaptionerArchitecture,
        projection: ProjectionInit,
        seed: u64,
        backend: impl Into<Backend>,
    ) -> Self {
        let initial = Initial::of(&architecture, projection);
        Self::build(architecture, initial, Builder::new(seed, backend))
    }

    /// A model whose parameters will be overwritten.
    fn blank(architecture: CaptionerArchitecture, backend: impl Into<Backend>) -> Self {
        let initial = Initial::of(&architecture, ProjectionInit::default());
        Self::build(architecture, initial, Builder::blank(backend))
    }

    /// A model with the parameters `values`.
    ///
    /// # Errors
    /// Everything missing, extra or misshapen, at once.
    pub fn with(
        architecture: CaptionerArchitecture,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, Mismatch> {
        let captioner = Self::blank(architecture, backend);
        captioner.parameters.load(values)?;
        Ok(captioner)
    }

    /// A frozen model with this one's parameters as they are now.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::blank(self.architecture.clone(), self.parameters.backend());
        no_grad(|| copy.parameters.flat().shallow_clone().copy_(self.parameters.flat()));
        copy.parameters.changed();
        copy
    }

    fn build(architecture: CaptionerArchitecture, initial: Initial, mut builder: Builder) -> Self {
        let encoder = Encoder::new(&mut builder, &architecture, initial);
        let decoder = Decoder::new(&mut builder, &architecture, initial);
        Self { architecture, encoder, decoder, parameters: builder.finish() }
    }

    /// Its sizes.
    #[must_use]
    pub fn architecture(&self) -> &CaptionerArchitecture {
        &self.architecture
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

    /// Log-probability of every token after the begin token; `vision` is `[images, vision tokens, vision width]`.
    ///
    /// What captions of an image have in common from their beginning is computed once, padding is not projected onto the vocabulary,
    /// and no log-softmax over it is kept.
    #[must_use]
    pub fn token_log_probabilities(&self, vision: &Tensor, captions: &Captions, mode: Mode) -> Packed {
        let memory = self.encoder.forward(vision, mode);
        let hidden = self.decoder.forward(&captions.inputs, &memory, mode).flatten(0, 1);
        let hidden = hidden.index_select(0, &captions.nodes);
        captions.pack(&nn::token_log_probabilities(&hidden, self.decoder.output(), &captions.after, &captions.targets))
    }

    /// `search.beams` captions of each image, drawn from the model with libtorch's generator.
    #[must_use]
    pub fn sample(&self, vision: &Tensor, search: &Search, mode: Mode) -> Vec<Vec<Hypothesis>> {
        self.generate(vision, search, mode, sample::sample)
    }

    /// The k best captions of each image, best first. With dropout, libtorch's generator draws the
    /// masks: of the encoder once for each image, of the decoder for each token of each beam.
    #[must_use]
    pub fn search(&self, vision: &Tensor, search: &Search, mode: Mode) -> Vec<Vec<Hypothesis>> {
        self.generate(vision, search, mode, beam::search)
    }

    fn generate(
        &self,
        vision: &Tensor,
        search: &Search,
        mode: Mode,
        find: fn(&mut dyn Steps, usize, &Search) -> Vec<Vec<Hypothesis>>,
    ) -> Vec<Vec<Hypothesis>> {
        no_grad(|| {
            let memory = self.encoder.forward(vision, mode);
            let mut steps = self.decoder.begin(&memory, search.beams as i64, search.max_length as i64, mode);
            find(&mut *steps, vision.size()[0] as usize, search)
        })
    }
}
