//! The settings of beam search and sampling.

use config::Decoding;
use tokenizer::Vocabulary;

/// The settings of beam search and sampling, as transformers' `GenerationConfig`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerationConfig {
    /// The number of beams, and of returned captions per image.
    pub beams: usize,
    /// Maximal length of a caption in tokens, begin and end tokens included.
    pub max_length: usize,
    /// A hypothesis' log-probability is divided by its length to the power of this.
    pub length_penalty: f64,
    /// Whether the length of captions that were cut at `max_length` includes the begin token, as in
    /// transformers up to 4.35, which the DiCO release uses.
    pub cut_length_includes_bos: bool,
    /// The id of the token that begins a caption.
    pub bos_token_id: i64,
    /// The id of the token that ends a caption.
    pub eos_token_id: i64,
}

impl GenerationConfig {
    /// The settings of a run file, for a captioner with this vocabulary.
    #[must_use]
    pub fn new(decoding: &Decoding, vocabulary: &Vocabulary) -> Self {
        Self {
            beams: decoding.beams as usize,
            max_length: decoding.max_length as usize,
            length_penalty: decoding.length_penalty,
            cut_length_includes_bos: decoding.cut_length_includes_bos,
            bos_token_id: vocabulary.begin_token(),
            eos_token_id: vocabulary.end_token(),
        }
    }
}
