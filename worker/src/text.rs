//! Text to tokens and back: CLIP's byte-pair encoding, and the vocabulary that a run's own models know.

use std::collections::BTreeSet;

use instant_clip_tokenizer::{Token, Tokenizer};
use tch::{Device, Tensor};

/// CLIP's begin, end (and the captioner's pad) token.
const CLIP_BEGIN: u16 = 49_406;
const CLIP_END: u16 = 49_407;

/// Token sequences of different lengths, padded at the end.
pub struct TokenBatch {
    /// `[batch, longest]`.
    pub ids: Tensor,
    /// Tokens of each sequence, `[batch]`.
    pub lengths: Tensor,
}

impl TokenBatch {
    /// Pads `sequences` to the longest with `pad`.
    #[must_use]
    pub fn new(sequences: &[Vec<i64>], pad: i64, device: Device) -> Self {
        let longest = sequences.iter().map(Vec::len).max().unwrap_or(0);
        let padded: Vec<i64> = sequences
            .iter()
            .flat_map(|sequence| sequence.iter().copied().chain(std::iter::repeat_n(pad, longest - sequence.len())))
            .collect();
        let lengths: Vec<i64> = sequences.iter().map(|sequence| sequence.len() as i64).collect();
        let ids = Tensor::from_slice(&padded).view([sequences.len() as i64, longest as i64]).to_device(device);
        Self { ids, lengths: Tensor::from_slice(&lengths).to_device(device) }
    }
}

/// CLIP's tokens, or those of them that a corpus uses, numbered without gaps; then begin, end and pad.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// CLIP's number of each of ours, ascending, without begin, end and pad.
    tokens: Vec<u16>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary of {} tokens", self.size())
    }
}

impl Vocabulary {
    /// All of CLIP's tokens: begin 49406, end 49407, pad 49408, as published.
    #[must_use]
    pub fn full() -> Self {
        Self { tokenizer: Tokenizer::new(), tokens: (0..CLIP_BEGIN).collect() }
    }

    /// Only the tokens of `texts`.
    pub fn of_corpus<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let tokenizer = Tokenizer::new();
        let mut used = BTreeSet::new();
        let mut tokens = Vec::new();
        for text in texts {
            tokens.clear();
            tokenizer.encode(text, &mut tokens);
            used.extend(tokens.iter().map(|token| token.to_u16()));
        }
        Self { tokenizer, tokens: used.into_iter().filter(|&token| token < CLIP_BEGIN).collect() }
    }

    /// CLIP's number of each token, ascending, without begin, end and pad.
    #[must_use]
    pub fn tokens(&self) -> &[u16] {
        &self.tokens
    }

    /// Tokens, begin, end and pad included.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.tokens.len() as i64 + 3
    }

    /// The token that begins every text.
    #[must_use]
    pub fn begin(&self) -> i64 {
        self.tokens.len() as i64
    }

    /// The token that ends every text.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.begin() + 1
    }

    /// The token that fills a batch.
    #[must_use]
    pub fn pad(&self) -> i64 {
        self.begin() + 2
    }

    /// Begin, tokens, end; at most `most` of them, of which the last is always the end. Tokens that the vocabulary lacks
    /// are left out.
    #[must_use]
    pub fn encode(&self, text: &str, most: usize) -> Vec<i64> {
        let mut tokens = Vec::new();
        self.tokenizer.encode(text, &mut tokens);
        let known = tokens.iter().filter_map(|token| self.tokens.binary_search(&token.to_u16()).ok());
        let mut ids = vec![self.begin()];
        ids.extend(known.map(|index| index as i64).take(most.saturating_sub(2)));
        ids.push(self.end());
        ids
    }

    /// The text of some tokens, up to the first end.
    #[must_use]
    pub fn decode(&self, ids: &[i64]) -> String {
        let tokens = ids.iter().take_while(|&&id| id != self.end()).filter_map(|&id| {
            let clip = *self.tokens.get(usize::try_from(id).ok()?)?;
            debug_assert!(clip < CLIP_END);
            Token::from_u16(clip, &self.tokenizer)
        });
        self.tokenizer.decode(tokens).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_vocabulary_is_the_published_one() {
        let vocabulary = Vocabulary::full();
        assert_eq!([vocabulary.begin(), vocabulary.end(), vocabulary.pad()], [49_406, 49_407, 49_408]);
        assert_eq!(vocabulary.size(), 49_409);
        assert_eq!(vocabulary.encode("Hi there", 77), [49_406, 1883, 997, 49_407]);
    }

    #[test]
    fn a_corpus_vocabulary_has_no_gaps_and_keeps_texts() {
        let vocabulary = Vocabulary::of_corpus(["a red circle", "a blue square"]);
        assert_eq!(vocabulary.size(), 5 + 3);
        let ids = vocabulary.encode("a blue circle", 77);
        assert!(ids.iter().all(|&id| id < vocabulary.size()));
        assert_eq!(vocabulary.decode(&ids[1..]), "a blue circle");
        assert_eq!(vocabulary.decode(&vocabulary.encode("a green circle", 77)[1..]), "a circle");
    }

    #[test]
    fn long_texts_are_cut_and_still_end() {
        let vocabulary = Vocabulary::full();
        let ids = vocabulary.encode(&"circle ".repeat(100), 77);
        assert_eq!((ids.len(), ids[76]), (77, vocabulary.end()));
    }
}
