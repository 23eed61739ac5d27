//! The captioner of the DiCO release: CLIP's frozen hidden states, projected, a BERT encoder over them, and a GPT-2 decoder
//! that attends to the encoder.
//!
//! Parameter names are those of the released Hugging Face folders, without the vision tower, which is frozen and lives in
//! [`crate::clip`].

pub mod beam;
mod decoder;
mod encoder;

use runfile::Preset;
use tch::{Device, Kind, Tensor, no_grad};

use crate::nn::{Builder, Mode, Parameters};
use beam::Hypothesis;
use decoder::Decoder;
use encoder::Encoder;

/// Sizes of the captioner.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width of the vision tower's hidden states.
    pub vision_width: i64,
    /// Positions of the vision tower's output.
    pub vision_tokens: i64,
    /// Width of encoder and decoder.
    pub width: i64,
    /// Attention heads of both.
    pub heads: i64,
    /// Layers of the encoder.
    pub encoder_layers: i64,
    /// Width of the encoder's feed-forward layers.
    pub encoder_inner: i64,
    /// Layers of the decoder.
    pub decoder_layers: i64,
    /// Most positions of a caption.
    pub positions: i64,
    /// Tokens known, begin, end and pad included.
    pub vocabulary_size: i64,
    /// Deviation of the initial weights.
    pub initial: f64,
    /// Deviation of the encoder's initial position embeddings.
    pub initial_positions: f64,
}

impl Config {
    /// The named size, to see through a vision tower of the given width and tokens.
    #[must_use]
    pub fn preset(preset: Preset, vision: (i64, i64), vocabulary_size: i64) -> Self {
        let (vision_width, vision_tokens) = vision;
        match preset {
            Preset::Tiny => Self {
                vision_width,
                vision_tokens,
                width: 96,
                heads: 4,
                encoder_layers: 2,
                encoder_inner: 384,
                decoder_layers: 2,
                positions: 77,
                vocabulary_size,
                // What 0.02 is to the width of BERT and GPT-2.
                initial: 0.06,
                // As loud as the hidden states that they are added to, so that where things are is not drowned out by what
                // they are: a tower trained for minutes keeps places less well than the published ones.
                initial_positions: 0.5,
            },
            Preset::Dico => Self {
                vision_width,
                vision_tokens,
                width: 512,
                heads: 8,
                encoder_layers: 3,
                encoder_inner: 2048,
                decoder_layers: 3,
                positions: 1024,
                vocabulary_size,
                initial: 0.02,
                initial_positions: 0.02,
            },
        }
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
    /// The token that begins and the one that ends a caption.
    pub begin: i64,
    /// See `begin`.
    pub end: i64,
}

/// Encoder and decoder.
pub struct Captioner {
    encoder: Encoder,
    decoder: Decoder,
    parameters: Parameters,
}

impl Captioner {
    /// A model with parameters drawn from `seed`.
    #[must_use]
    pub fn new(config: &Config, seed: u64, device: Device) -> Self {
        let mut builder = Builder::new(seed, device);
        let encoder = Encoder::new(&mut builder, config);
        let decoder = Decoder::new(&mut builder, config);
        Self { encoder, decoder, parameters: builder.finish() }
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
