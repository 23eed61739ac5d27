//! The captioner of the DiCO release: a projection of CLIP's frozen hidden states, a BERT encoder
//! over them, and a GPT-2 decoder that attends to the encoder.
//!
//! Parameter names are those of the released Hugging Face folders, without the vision encoder,
//! which is frozen and belongs to [`crate::clip`].

pub mod beam;
mod captions;
mod decoder;
mod encoder;
#[cfg(test)]
pub(crate) mod golden;
mod sample;

use std::collections::BTreeMap;

use config::{Decoding, Preset, ProjectionInit};
use tch::{Tensor, no_grad};
use tokenizer::Vocabulary;
pub use weights::CaptionerArchitecture;

pub use captions::{Captions, Packed};

use crate::nn::{self, Backend, Builder, Mismatch, Mode, Parameters};
use beam::{Hypothesis, Steps};
use decoder::Decoder;
use encoder::Encoder;

/// The initialization of a captioner that is trained from scratch.
#[derive(Clone, Copy, Debug, PartialEq)]
struct CaptionerInit {
    /// The standard deviation of the weights.
    weights: f64,
    /// The standard deviation of the encoder's position embeddings.
    positions: f64,
    projection: ProjectionInit,
}

/// The config of a captioner that is trained from scratch, for `vision_tokens` hidden states of
/// `vision_width`.
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

impl CaptionerInit {
    /// 0.02 at the width of the published captioner, as in BERT and GPT-2, and more for narrower
    /// ones.
    fn of(architecture: &CaptionerArchitecture, projection: ProjectionInit) -> Self {
        if architecture.width >= 512 {
            return Self { weights: 0.02, positions: 0.02, projection };
        }
        // The position embeddings are as large as the hidden states to which they are added, so
        // that positions remain visible: a vision encoder trained for minutes encodes positions
        // less well than published ones.
        Self { weights: 0.06, positions: 0.5, projection }
    }
}

/// The settings of beam search and sampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Search {
    /// The number of beams, and of returned captions per image.
    pub beams: usize,
    /// Maximal length of a caption in tokens, begin and end tokens included.
    pub max_length: usize,
    /// The exponent of the length by which log-probabilities are divided.
    pub length_penalty: f64,
    /// Whether the begin token counts in the length of captions that were cut at the limit, as in
    /// transformers up to 4.35, which the DiCO release uses.
    pub cut_length_includes_bos: bool,
    /// The token that begins a caption.
    pub begin: i64,
    /// The token that ends a caption.
    pub end: i64,
}

impl Search {
    /// The settings of a run file, for a captioner with this vocabulary.
    #[must_use]
    pub fn new(decoding: &Decoding, vocabulary: &Vocabulary) -> Self {
        Self {
            beams: decoding.beams as usize,
            max_length: decoding.max_length as usize,
            length_penalty: decoding.length_penalty,
            cut_length_includes_bos: decoding.cut_length_includes_bos,
            begin: vocabulary.begin(),
            end: vocabulary.end(),
        }
    }
}

/// The captioner: encoder and decoder.
pub struct Captioner {
    architecture: CaptionerArchitecture,
    encoder: Encoder,
    decoder: Decoder,
    parameters: Parameters,
}

impl Captioner {
    /// A model with parameters initialized from `seed`.
    #[must_use]
    pub fn new(
        architecture: CaptionerArchitecture,
        projection: ProjectionInit,
        seed: u64,
        backend: impl Into<Backend>,
    ) -> Self {
        let initial = CaptionerInit::of(&architecture, projection);
        Self::build(architecture, initial, Builder::new(seed, backend))
    }

    /// A model whose parameters will be overwritten.
    fn blank(architecture: CaptionerArchitecture, backend: impl Into<Backend>) -> Self {
        let initial = CaptionerInit::of(&architecture, ProjectionInit::default());
        Self::build(architecture, initial, Builder::blank(backend))
    }

    /// A model with the parameters `values`.
    ///
    /// # Errors
    /// All parameters that are missing, unknown, or of a wrong shape.
    pub fn with(
        architecture: CaptionerArchitecture,
        values: &BTreeMap<String, Tensor>,
        backend: impl Into<Backend>,
    ) -> Result<Self, Mismatch> {
        let captioner = Self::blank(architecture, backend);
        captioner.parameters.load(values)?;
        Ok(captioner)
    }

    /// A frozen copy of the model with its present parameters.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::blank(self.architecture.clone(), self.parameters.backend());
        no_grad(|| copy.parameters.flat().shallow_clone().copy_(self.parameters.flat()));
        copy.parameters.changed();
        copy
    }

    fn build(architecture: CaptionerArchitecture, initial: CaptionerInit, mut builder: Builder) -> Self {
        let encoder = Encoder::new(&mut builder, &architecture, initial);
        let decoder = Decoder::new(&mut builder, &architecture, initial);
        Self { architecture, encoder, decoder, parameters: builder.finish() }
    }

    /// The model's config.
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

    /// The log-probability of each token after the begin token; `vision` is `[images, vision
    /// tokens, vision width]`.
    ///
    /// Common prefixes of an image's captions are computed once. Padding is not projected onto the
    /// vocabulary, and no log-softmax is stored for the backward pass.
    #[must_use]
    pub fn token_log_probabilities(&self, vision: &Tensor, captions: &Captions, mode: Mode) -> Packed {
        let memory = self.encoder.forward(vision, mode);
        let hidden = self.decoder.forward(&captions.inputs, &memory, mode).flatten(0, 1);
        let hidden = hidden.index_select(0, &captions.nodes);
        captions.pack(&nn::token_log_probabilities(&hidden, self.decoder.output(), &captions.after, &captions.targets))
    }

    /// Samples `search.beams` captions of each image with libtorch's random generator.
    #[must_use]
    pub fn sample(&self, vision: &Tensor, search: &Search, mode: Mode) -> Vec<Vec<Hypothesis>> {
        self.generate(vision, search, mode, sample::sample)
    }

    /// The k best captions of each image by beam search, best first. With dropout, libtorch's
    /// generator draws the masks: those of the encoder once per image, those of the decoder for
    /// each token of each beam.
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
