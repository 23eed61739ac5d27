//! Tokenization: CLIP's byte-pair encoding as in Hugging Face's `CLIPTokenizer`, and the
//! vocabularies of the models that a run trains.
//!
//! - `text_normalization`: the text normalization of OpenAI's `clip.tokenize`.
//! - `byte_pairs`: CLIP's tokens and merges as strings.
//! - `hugging_face`: a vocabulary as the content of `tokenizer.json`.

mod byte_pairs;
mod hugging_face;
mod text_normalization;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use instant_clip_tokenizer::{Token, Tokenizer};
use regex::Regex;
use unicode_normalization::UnicodeNormalization;
use weights::model_folder;

pub use hugging_face::SPECIAL_TOKENS;

/// CLIP's begin and end tokens.
const CLIP_BEGIN_TOKEN: u16 = 49_406;
const CLIP_END_TOKEN: u16 = 49_407;
/// The begin and end tokens as texts may contain them.
const SPECIAL_PATTERN: &str = r"<\|startoftext\|>|<\|endoftext\|>";
/// The begin token in a text.
const BEGIN_TEXT: &str = "<|startoftext|>";
/// The end token in a text.
const END_TEXT: &str = "<|endoftext|>";
/// The words, within which byte pairs are merged: common contractions, runs of letters, single
/// numeric characters (also such as `½`), runs of all other characters except white space.
const WORD_PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
/// The words as in `clip.tokenize`, whose pattern is case-insensitive. Therefore the long s counts
/// as an s. The combining iota subscript (U+0345) matches nothing: it is not a letter, but its
/// upper case is, so that neither the class of letters nor the class of other characters contains
/// it.
const CLIP_TOKENIZE_WORD_PATTERN: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+";
/// The contraction 's with a long s, and its tokens. The crate `instant_clip_tokenizer` would
/// encode this word of [`CLIP_TOKENIZE_WORD_PATTERN`] as two words.
const LONG_S_CONTRACTION: &str = "'ſ";
const LONG_S_CONTRACTION_TOKENS: [u16; 3] = [6, 129, 379];
/// Maximal length of a word in bytes; the rest is ignored. Merging takes quadratic time, and the
/// models read far fewer tokens.
const MAX_WORD_BYTES: usize = 2048;
/// Maximal size of a decoded token in bytes: the longest has 32, and an invalid byte becomes a
/// replacement character of three.
pub const MAX_TOKEN_BYTES: usize = 96;

/// CLIP's byte-pair encoding.
struct Bpe {
    tokenizer: Tokenizer,
    special_pattern: Regex,
    word_pattern: Regex,
    clip_tokenize_word_pattern: Regex,
}

impl Bpe {
    fn new() -> Self {
        let regex = |pattern| Regex::new(pattern).expect("the pattern is valid");
        let (word_pattern, clip_tokenize_word_pattern) = (regex(WORD_PATTERN), regex(CLIP_TOKENIZE_WORD_PATTERN));
        Self {
            tokenizer: Tokenizer::new(),
            special_pattern: regex(SPECIAL_PATTERN),
            word_pattern,
            clip_tokenize_word_pattern,
        }
    }

    /// Passes CLIP's tokens of `text` to `emit`, word by word, until `emit` breaks. Adds no begin
    /// and end tokens.
    fn encode(&self, text: &str, emit: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) {
        let normalized: String = text.nfc().flat_map(char::to_lowercase).collect();
        // Stops when `emit` breaks.
        _ = self.encode_normalized(&normalized, emit);
    }

    /// As [`Self::encode`] with the normalization and the words of `clip.tokenize`, in which a run
    /// of punctuation may extend into the text of a special token.
    fn encode_cleaned(&self, text: &str, emit: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) {
        _ = self.encode_words(&text_normalization::normalize(text), &self.clip_tokenize_word_pattern, emit);
    }

    /// Encodes a text that is normalized already.
    fn encode_normalized(&self, text: &str, emit: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut start = 0;
        for special in self.special_pattern.find_iter(text) {
            self.encode_words(&text[start..special.start()], &self.word_pattern, emit)?;
            self.encode_word(special.as_str(), emit)?;
            start = special.end();
        }
        self.encode_words(&text[start..], &self.word_pattern, emit)
    }

    fn encode_words(
        &self,
        text: &str,
        word_pattern: &Regex,
        emit: &mut dyn FnMut(&[Token]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        word_pattern.find_iter(text).try_for_each(|word| self.encode_word(word.as_str(), emit))
    }

    fn encode_word(&self, word: &str, emit: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) -> ControlFlow<()> {
        match word {
            BEGIN_TEXT => emit(&[self.tokenizer.start_of_text()]),
            END_TEXT => emit(&[self.tokenizer.end_of_text()]),
            LONG_S_CONTRACTION => {
                let tokens = LONG_S_CONTRACTION_TOKENS.iter();
                let tokens = tokens.filter_map(|token| Token::from_u16(*token, &self.tokenizer));
                emit(&tokens.collect::<Vec<_>>())
            }
            word => {
                let mut tokens = Vec::new();
                self.tokenizer.encode(&word[..word.floor_char_boundary(MAX_WORD_BYTES)], &mut tokens);
                emit(&tokens)
            }
        }
    }
}

/// The tokens of a model, from id 0: all of CLIP's, or those that a corpus uses, renumbered without
/// gaps; then the begin, end and pad tokens.
pub struct Vocabulary {
    bpe: Bpe,
    /// CLIP's id of each token, ascending, without begin, end and pad tokens.
    clip_ids: Vec<u16>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary of {} tokens", self.size())
    }
}

impl Vocabulary {
    /// All of CLIP's tokens: begin 49406, end 49407, pad 49408, as in DiCO's release.
    #[must_use]
    pub fn full() -> Self {
        Self { bpe: Bpe::new(), clip_ids: (0..CLIP_BEGIN_TOKEN).collect() }
    }

    /// A vocabulary of the tokens that occur in `texts`.
    pub fn of_corpus<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let bpe = Bpe::new();
        let mut used = BTreeSet::new();
        for text in texts {
            bpe.encode(text, &mut |tokens| {
                used.extend(tokens.iter().map(|token| token.to_u16()));
                ControlFlow::Continue(())
            });
        }
        Self { bpe, clip_ids: used.into_iter().filter(|&token| token < CLIP_BEGIN_TOKEN).collect() }
    }

    /// The vocabulary in the manifest of a model folder.
    #[must_use]
    pub fn from_manifest(stored: &model_folder::Vocabulary) -> Self {
        match stored {
            model_folder::Vocabulary::Full => Self::full(),
            model_folder::Vocabulary::Subset(ids) => Self { bpe: Bpe::new(), clip_ids: ids.clone() },
        }
    }

    /// The vocabulary for the manifest of a model folder.
    #[must_use]
    pub fn to_manifest(&self) -> model_folder::Vocabulary {
        if self.clip_ids.len() == usize::from(CLIP_BEGIN_TOKEN) {
            return model_folder::Vocabulary::Full;
        }
        model_folder::Vocabulary::Subset(self.clip_ids.clone())
    }

    /// The number of tokens, begin, end and pad tokens included.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.clip_ids.len() as i64 + 3
    }

    /// The begin token.
    #[must_use]
    pub fn begin_token(&self) -> i64 {
        self.clip_ids.len() as i64
    }

    /// The end token.
    #[must_use]
    pub fn end_token(&self) -> i64 {
        self.begin_token() + 1
    }

    /// The pad token.
    #[must_use]
    pub fn pad_token(&self) -> i64 {
        self.begin_token() + 2
    }

    /// Encodes a text: begin token, tokens, end token. Returns at most `max_length` tokens, but at
    /// least begin and end tokens. Drops tokens that are not in the vocabulary.
    #[must_use]
    pub fn encode(&self, text: &str, max_length: usize) -> Vec<i64> {
        self.encode_with(max_length, |emit| self.bpe.encode(text, emit))
    }

    /// As [`Self::encode`], with the normalization and the words of OpenAI's `clip.tokenize`, which
    /// repairs broken encodings and unescapes HTML.
    #[must_use]
    pub fn encode_cleaned(&self, text: &str, max_length: usize) -> Vec<i64> {
        self.encode_with(max_length, |emit| self.bpe.encode_cleaned(text, emit))
    }

    /// Adds begin and end tokens to the tokens that `encode` emits. Returns at most `max_length`
    /// tokens, but at least begin and end tokens.
    fn encode_with(
        &self,
        max_length: usize,
        encode: impl FnOnce(&mut dyn FnMut(&[Token]) -> ControlFlow<()>),
    ) -> Vec<i64> {
        let max_before_end = max_length.saturating_sub(1).max(1);
        let mut ids = vec![self.begin_token()];
        encode(&mut |tokens| {
            ids.extend(tokens.iter().filter_map(|token| self.own_id(token.to_u16())));
            if ids.len() < max_before_end { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        ids.truncate(max_before_end);
        ids.push(self.end_token());
        ids
    }

    /// The training target of a captioner: begin token, tokens and end token, if these are at most
    /// `max_length` tokens. A longer target is truncated, so that it has no end token.
    #[must_use]
    pub fn encode_target(&self, text: &str, max_length: usize) -> Vec<i64> {
        let mut ids = self.encode(text, max_length + 1);
        ids.truncate(max_length);
        ids
    }

    /// The number of tokens of a text that are in the vocabulary, begin and end tokens included.
    #[must_use]
    pub fn token_count(&self, text: &str) -> usize {
        self.encode(text, usize::MAX).len()
    }

    /// The id in this vocabulary of a token with this CLIP id; none if the vocabulary has no such
    /// token.
    fn own_id(&self, token: u16) -> Option<i64> {
        match token {
            CLIP_BEGIN_TOKEN => Some(self.begin_token()),
            CLIP_END_TOKEN => Some(self.end_token()),
            token => self.clip_ids.binary_search(&token).ok().map(|index| index as i64),
        }
    }

    /// The text of tokens of this vocabulary, up to the first end token.
    #[must_use]
    pub fn decode(&self, ids: &[i64]) -> String {
        let tokens = ids.iter().take_while(|&&id| id != self.end_token()).filter_map(|&id| {
            let clip_id = *self.clip_ids.get(usize::try_from(id).ok()?)?;
            debug_assert!(clip_id < CLIP_END_TOKEN);
            Token::from_u16(clip_id, &self.bpe.tokenizer)
        });
        self.bpe.tokenizer.decode(tokens).trim().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_vocabulary_equals_that_of_dico() {
        let vocabulary = Vocabulary::full();
        assert_eq!(
            [vocabulary.begin_token(), vocabulary.end_token(), vocabulary.pad_token()],
            [49_406, 49_407, 49_408]
        );
        assert_eq!(vocabulary.size(), 49_409);
        assert_eq!(vocabulary.encode("Hi there", 77), [49_406, 1883, 997, 49_407]);
    }

    #[test]
    fn a_corpus_vocabulary_has_contiguous_ids_and_drops_unknown_tokens() {
        let vocabulary = Vocabulary::of_corpus(["a red circle", "a blue square"]);
        assert_eq!(vocabulary.size(), 5 + 3);
        let ids = vocabulary.encode("a blue circle", 77);
        assert!(ids.iter().all(|&id| id < vocabulary.size()));
        assert_eq!(vocabulary.decode(&ids[1..]), "a blue circle");
        assert_eq!(vocabulary.decode(&vocabulary.encode("a green circle", 77)[1..]), "a circle");
    }

    #[test]
    fn long_texts_are_truncated_and_keep_the_end_token() {
        let vocabulary = Vocabulary::full();
        let ids = vocabulary.encode(&"circle ".repeat(100), 77);
        assert_eq!((ids.len(), ids[76]), (77, vocabulary.end_token()));
    }

    #[test]
    fn a_truncated_target_has_no_end_token() {
        let vocabulary = Vocabulary::full();
        let circles = |count: usize| "circle ".repeat(count);
        for (count, max_length) in [(3, 77), (75, 77), (76, 77), (100, 77), (1, 3), (2, 3), (0, 3)] {
            let target = vocabulary.encode_target(&circles(count), max_length);
            let full = vocabulary.encode(&circles(count), 1000);
            assert_eq!((full.len(), vocabulary.token_count(&circles(count))), (count + 2, count + 2));
            assert_eq!(target, full[..full.len().min(max_length)], "{count} tokens, {max_length} at most");
            assert_eq!(
                target.last() == Some(&vocabulary.end_token()),
                count + 2 <= max_length,
                "{count} tokens, {max_length} at most"
            );
        }
    }

    #[test]
    fn no_decoded_token_is_longer_than_max_token_bytes() {
        let vocabulary = Vocabulary::full();
        let longest = (0..vocabulary.begin_token()).map(|id| vocabulary.decode(&[id]).len()).max();
        assert!(longest.unwrap() <= MAX_TOKEN_BYTES, "{longest:?}");
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        /// Entries by group of texts. All tokens are without begin and end tokens. An entry has a
        /// text and the tokens of Hugging Face's fast tokenizer. If the slow tokenizer or
        /// `clip.tokenize` gives other tokens, it also has those of the slow tokenizer (null if
        /// they are the same) and those of `clip.tokenize`.
        groups: std::collections::BTreeMap<String, Vec<Vec<serde_json::Value>>>,
        /// Further texts, on which the normalization of `clip.tokenize` has an effect: a text, and
        /// its tokens by `clip.tokenize`.
        cleaned: Vec<[serde_json::Value; 2]>,
    }

    /// The golden file in `tests/golden`, or in the folder that the environment variable
    /// `DICO_PARITY` names: `make parity` writes a larger file there.
    fn golden() -> Golden {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let golden = std::env::var_os("DICO_PARITY").map_or(golden, Into::into).join("tokens.json");
        serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap()
    }

    #[test]
    fn golden_tokens_of_cleaned_texts_equal_those_of_openai_clip() {
        let (golden, vocabulary) = (golden(), Vocabulary::full());
        assert!(golden.cleaned.len() >= 500);
        // In entries without tokens of `clip.tokenize`, these equal the tokens of the fast
        // tokenizer.
        let same = golden.groups.values().flatten().filter(|entry| entry.len() < 4).map(|entry| (&entry[0], &entry[1]));
        let different =
            golden.groups.values().flatten().filter(|entry| entry.len() == 4).map(|entry| (&entry[0], &entry[3]));
        let cleaned = golden.cleaned.iter().map(|entry| (&entry[0], &entry[1]));
        let mismatches: Vec<String> = same
            .chain(different)
            .chain(cleaned)
            .filter_map(|(text, expected)| {
                let (text, expected) =
                    (text.as_str().unwrap(), serde_json::from_value::<Vec<i64>>(expected.clone()).unwrap());
                let tokens = vocabulary.encode_cleaned(text, 77);
                (tokens[1..tokens.len() - 1] != expected)
                    .then(|| format!("{text:?} gives {tokens:?}, not {expected:?}"))
            })
            .collect();
        assert!(
            mismatches.is_empty(),
            "{} differ:\n{}",
            mismatches.len(),
            mismatches[..mismatches.len().min(20)].join("\n")
        );
    }

    #[test]
    fn golden_tokens_equal_those_of_hugging_face_tokenizers() {
        let golden = golden();
        let vocabulary = Vocabulary::full();
        let mut mismatches = Vec::new();
        let entries: Vec<_> =
            golden.groups.iter().flat_map(|(group, entries)| entries.iter().map(move |e| (group, e))).collect();
        for (group, entry) in &entries {
            let text = entry[0].as_str().unwrap();
            let expected: Vec<i64> = serde_json::from_value(entry[1].clone()).unwrap();
            let tokens = vocabulary.encode(text, 77);
            if tokens[1..tokens.len() - 1] != expected {
                mismatches.push(format!("{group}: {text:?} gives {tokens:?}, not {expected:?}"));
            }
        }
        assert!(entries.len() >= 5000);
        assert!(
            mismatches.is_empty(),
            "{} of {} differ:\n{}",
            mismatches.len(),
            entries.len(),
            mismatches[..mismatches.len().min(20)].join("\n")
        );
    }
}
