//! The captioner of the DiCO release: CLIP's frozen hidden states, projected, a BERT encoder over them, and a GPT-2 decoder
//! that attends to the encoder.
//!
//! Parameter names are those of the released Hugging Face folders, without the vision tower, which is frozen and lives in
//! [`crate::clip`].

pub mod beam;
mod decoder;
mod encoder;
#[cfg(test)]
pub(crate) mod golden;
mod sample;

use std::collections::BTreeMap;

use runfile::{Decoding, Preset};
use tch::{Device, Kind, Tensor, no_grad};
pub use weights::CaptionerArchitecture;

use crate::nn::{Builder, Mismatch, Mode, Parameters};
use crate::text::Vocabulary;
use beam::Hypothesis;
use decoder::Decoder;
use encoder::Encoder;

/// How a captioner that is trained from scratch begins.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Initial {
    /// Deviation of the weights.
    weights: f64,
    /// Deviation of the encoder's position embeddings.
    positions: f64,
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
            positions: 77,
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
            positions: 1024,
            vocabulary_size,
        },
    }
}

impl Initial {
    /// 0.02 at the width of the published captioner, as BERT and GPT-2 begin, and more where it is narrower.
    fn of(architecture: &CaptionerArchitecture) -> Self {
        if architecture.width >= 512 {
            return Self { weights: 0.02, positions: 0.02 };
        }
        // Positions as loud as the hidden states that they are added to, so that where things are is not drowned out by
        // what they are: a tower trained for minutes keeps places less well than the published ones.
        Self { weights: 0.06, positions: 0.5 }
    }
}

/// Captions to be scored: k for each image, each with begin and end, padded to one length.
pub struct Captions {
    /// `[images * k, length]`, the captions of an image adjacent.
    pub ids: Tensor,
    /// Tokens of each caption, begin and end included, `[images * k]`.
    pub lengths: Tensor,
    /// Captions an image.
    pub each: i64,
}

impl Captions {
    /// Pads `sequences`, of which every `each` belong to one image.
    #[must_use]
    pub fn new(sequences: &[Vec<i64>], each: i64, pad: i64, device: Device) -> Self {
        let batch = crate::text::TokenBatch::new(sequences, pad, device);
        Self { ids: batch.ids, lengths: batch.lengths, each }
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
    pub fn new(architecture: CaptionerArchitecture, seed: u64, device: Device) -> Self {
        Self::build(architecture, Builder::new(seed, device))
    }

    /// A model with the parameters `values`.
    ///
    /// # Errors
    /// Everything missing, extra or misshapen, at once.
    pub fn with(
        architecture: CaptionerArchitecture,
        values: &BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self, Mismatch> {
        let captioner = Self::build(architecture, Builder::blank(device));
        captioner.parameters.copy_into(captioner.parameters.flat(), values)?;
        Ok(captioner)
    }

    /// A frozen model with this one's parameters as they are now.
    #[must_use]
    pub fn copy(&self) -> Self {
        let flat = self.parameters.flat();
        let copy = Self::build(self.architecture.clone(), Builder::blank(flat.device()));
        no_grad(|| copy.parameters.flat().shallow_clone().copy_(flat));
        copy
    }

    fn build(architecture: CaptionerArchitecture, mut builder: Builder) -> Self {
        let initial = Initial::of(&architecture);
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

    /// Log-probability of every real token after the begin token, packed: `[tokens]` in order of caption and position.
    ///
    /// `vision` is `[images, vision tokens, vision width]`. The vocabulary is projected onto for real tokens only, and no
    /// log-softmax over it is kept.
    #[must_use]
    pub fn token_log_probabilities(&self, vision: &Tensor, captions: &Captions, mode: Mode) -> Packed {
        let memory = self.encoder.forward(vision, mode);
        let (rows, length) = captions.ids.size2().expect("captions are [rows, length]");
        let inputs = captions.ids.narrow(1, 0, length - 1);
        let targets = captions.ids.narrow(1, 1, length - 1);
        let hidden = self.decoder.forward(&inputs, &memory, captions.each, mode);
        let positions = Tensor::arange(length - 1, (Kind::Int64, vision.device()));
        let real = positions.unsqueeze(0).lt_tensor(&(&captions.lengths - 1).unsqueeze(1));
        let index = real.flatten(0, 1).nonzero().squeeze_dim(1);
        let logits = self.decoder.logits(&hidden.flatten(0, 1).index_select(0, &index));
        let chosen =
            logits.gather(1, &targets.flatten(0, 1).index_select(0, &index).unsqueeze(1), false).squeeze_dim(1);
        let row = index.divide_scalar_mode(length - 1, "floor").to_kind(Kind::Int64);
        Packed { values: chosen - logits.logsumexp(1, false), row, rows }
    }

    /// `search.beams` captions of each image, drawn from the model with libtorch's generator.
    #[must_use]
    pub fn sample(&self, vision: &Tensor, search: &Search) -> Vec<Vec<Hypothesis>> {
        no_grad(|| {
            let memory = self.encoder.forward(vision, Mode::Evaluate);
            let mut steps = self.decoder.begin(&memory, search.beams as i64, search.max_length as i64);
            sample::sample(&mut steps, vision.size()[0] as usize, search)
        })
    }

    /// The k best captions of each image, best first.
    #[must_use]
    pub fn search(&self, vision: &Tensor, search: &Search) -> Vec<Vec<Hypothesis>> {
        no_grad(|| {
            let memory = self.encoder.forward(vision, Mode::Evaluate);
            let images = vision.size()[0];
            let mut steps = self.decoder.begin(&memory, search.beams as i64, search.max_length as i64);
            beam::search(&mut steps, images as usize, search)
        })
    }
}

/// One value per real token of some captions.
pub struct Packed {
    /// `[tokens]`.
    pub values: Tensor,
    /// The caption that each value belongs to, `[tokens]`.
    pub row: Tensor,
    rows: i64,
}

impl Packed {
    /// Sum over each caption's tokens, `[captions]`.
    pub fn sums(&self) -> Tensor {
        Tensor::zeros([self.rows], (self.values.kind(), self.values.device())).index_add(0, &self.row, &self.values)
    }
}
