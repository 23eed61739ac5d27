//! Tokenization: CLIP's byte-pair encoding as in Hugging Face's `CLIPTokenizer`, and the vocabulary
//! of a run's own models.

mod byte_pairs;
mod clean;
mod hugging_face;

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use instant_clip_tokenizer::{Token, Tokenizer};
use regex::Regex;
use unicode_normalization::UnicodeNormalization;
use weights::folder;

pub use hugging_face::SPECIAL;

/// CLIP's begin and end tokens.
const CLIP_BEGIN: u16 = 49_406;
const CLIP_END: u16 = 49_407;
/// Their spelling, which a text may contain.
const WRITTEN: &str = r"<\|startoftext\|>|<\|endoftext\|>";
const WRITTEN_BEGIN: &str = "<|startoftext|>";
const WRITTEN_END: &str = "<|endoftext|>";
/// The units of merging: common contractions, runs of letters, single digits, runs of anything
/// else.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+";
/// The same, case-insensitive, as in `clip.tokenize`: the long s counts as an s, and the combining
/// iota subscript, whose other case is a letter, is in none of the classes.
const CLEANED_WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}\x{345}]+";
/// The one contraction that merges would split, and its tokens.
const LONG_S: &str = "'ſ";
const LONG_S_TOKENS: [u16; 3] = [6, 129, 379];
/// Maximal length of a word in bytes. Merging takes time quadratic in it, and the context length is
/// far below.
const MAX_WORD_LENGTH: usize = 2048;
/// Maximal size of a decoded token in bytes: the longest has 32, and an invalid byte becomes a
/// replacement character of three.
pub const MAX_TOKEN_BYTES: usize = 96;

/// CLIP's byte-pair encoding.
struct Bpe {
    merges: Tokenizer,
    written: Regex,
    words: Regex,
    cleaned_words: Regex,
}

impl Bpe {
    fn new() -> Self {
        let regex = |pattern| Regex::new(pattern).expect("the pattern is valid");
        let (words, cleaned_words) = (regex(WORDS), regex(CLEANED_WORDS));
        Self { merges: Tokenizer::new(), written: regex(WRITTEN), words, cleaned_words }
    }

    /// Passes CLIP's tokens of `text` to `take`, word by word and without begin and end, until it
    /// breaks.
    fn encode(&self, text: &str, take: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) {
        let normalised: String = text.nfc().flat_map(char::to_lowercase).collect();
        // Stops when `take` does.
        _ = self.encode_normalised(&normalised, take);
    }

    /// The same with the normalization of `clip.tokenize`. There a run of punctuation may extend
    /// into a spelled special token.
    fn encode_cleaned(&self, text: &str, take: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) {
        _ = self.encode_words(&clean::clean(text), &self.cleaned_words, take);
    }

    fn encode_normalised(&self, text: &str, take: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) -> ControlFlow<()> {
        let mut start = 0;
        for written in self.written.find_iter(text) {
            self.encode_words(&text[start..written.start()], &self.words, take)?;
            self.encode_word(written.as_str(), take)?;
            start = written.end();
        }
        self.encode_words(&text[start..], &self.words, take)
    }

    fn encode_words(
        &self,
        text: &str,
        words: &Regex,
        take: &mut dyn FnMut(&[Token]) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        words.find_iter(text).try_for_each(|word| self.encode_word(word.as_str(), take))
    }

    fn encode_word(&self, word: &str, take: &mut dyn FnMut(&[Token]) -> ControlFlow<()>) -> ControlFlow<()> {
        match word {
            WRITTEN_BEGIN => take(&[self.merges.start_of_text()]),
            WRITTEN_END => take(&[self.merges.end_of_text()]),
            LONG_S => {
                let tokens = LONG_S_TOKENS.iter().filter_map(|token| Token::from_u16(*token, &self.merges));
                take(&tokens.collect::<Vec<_>>())
            }
            word => {
                let mut tokens = Vec::new();
                self.merges.encode(&word[..word.floor_char_boundary(MAX_WORD_LENGTH)], &mut tokens);
                take(&tokens)
            }
        }
    }
}

/// All of CLIP's tokens, or those that a corpus uses, renumbered without gaps; then begin, end and
/// pad tokens.
pub struct Vocabulary {
    bpe: Bpe,
    /// CLIP's number of each token here, ascending, without begin, end and pad tokens.
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
        Self { bpe: Bpe::new(), tokens: (0..CLIP_BEGIN).collect() }
    }

    /// The tokens of `texts` only.
    pub fn of_corpus<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let bpe = Bpe::new();
        let mut used = BTreeSet::new();
        for text in texts {
            bpe.encode(text, &mut |tokens| {
                used.extend(tokens.iter().map(|token| token.to_u16()));
                ControlFlow::Continue(())
            });
        }
        Self { bpe, tokens: used.into_iter().filter(|&token| token < CLIP_BEGIN).collect() }
    }

    /// The vocabulary in the manifest of a model folder.
    #[must_use]
    pub fn stored(stored: &folder::Vocabulary) -> Self {
        match stored {
            folder::Vocabulary::Full => Self::full(),
            folder::Vocabulary::Tokens(tokens) => Self { bpe: Bpe::new(), tokens: tokens.clone() },
        }
    }

    /// The vocabulary for the manifest of a model folder.
    #[must_use]
    pub fn to_stored(&self) -> folder::Vocabulary {
        if self.tokens.len() == usize::from(CLIP_BEGIN) {
            return folder::Vocabulary::Full;
        }
        folder::Vocabulary::Tokens(self.tokens.clone())
    }

    /// The number of tokens, begin, end and pad tokens included.
    #[must_use]
    pub fn size(&self) -> i64 {
        self.tokens.len() as i64 + 3
    }

    /// The begin token.
    #[must_use]
    pub fn begin(&self) -> i64 {
        self.tokens.len() as i64
    }

    /// The end token.
    #[must_use]
    pub fn end(&self) -> i64 {
        self.begin() + 1
    }

    /// The pad token.
    #[must_use]
    pub fn pad(&self) -> i64 {
        self.begin() + 2
    }

    /// Begin token, tokens, end token; at most `most` in all, the last of which is always the end
    /// token. Drops tokens that are not in the vocabulary.
    #[must_use]
    pub fn encode(&self, text: &str, most: usize) -> Vec<i64> {
        self.closed(most, |take| self.bpe.encode(text, take))
    }

    /// The same with the normalization of OpenAI's `clip.tokenize`: broken encodings, HTML, white
    /// space.
    #[must_use]
    pub fn encode_cleaned(&self, text: &str, most: usize) -> Vec<i64> {
        self.closed(most, |take| self.bpe.encode_cleaned(text, take))
    }

    /// Begin token, the tokens from `encode`, end token; at most `most` in all.
    fn closed(&self, most: usize, encode: impl FnOnce(&mut dyn FnMut(&[Token]) -> ControlFlow<()>)) -> Vec<i64> {
        let room = most.saturating_sub(1).max(1);
        let mut ids = vec![self.begin()];
        encode(&mut |tokens| {
            ids.extend(tokens.iter().filter_map(|token| self.id(token.to_u16())));
            if ids.len() < room { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        ids.truncate(room);
        ids.push(self.end());
        ids
    }

    /// The training target of a captioner: begin token, tokens, and the end token if all of them
    /// are within `most`. A longer caption is truncated without an end token.
    #[must_use]
    pub fn encode_target(&self, text: &str, most: usize) -> Vec<i64> {
        let mut ids = self.encode(text, most + 1);
        ids.truncate(most);
        ids
    }

    /// The number of tokens of a text, begin and end tokens included.
    #[must_use]
    pub fn length(&self, text: &str) -> usize {
        self.encode(text, usize::MAX).len()
    }

    /// The number here of one of CLIP's tokens.
    fn id(&self, token: u16) -> Option<i64> {
        match token {
            CLIP_BEGIN => Some(self.begin()),
            CLIP_END => Some(self.end()),
            token => self.tokens.binary_search(&token).ok().map(|index| index as i64),
        }
    }

    /// The text of some tokens, up to the first end token.
    #[must_use]
    pub fn decode(&self, ids: &[i64]) -> String {
        let tokens = ids.iter().take_while(|&&id| id != self.end()).filter_map(|&id| {
            let clip = *self.tokens.get(usize::try_from(id).ok()?)?;
            debug_assert!(clip < CLIP_END);
            Token::from_u16(clip, &self.bpe.merges)
        });
        self.bpe.merges.decode(tokens).trim().to_owned()
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

    #[test]
    fn a_target_that_is_cut_has_no_end() {
        let vocabulary = Vocabulary::full();
        let circles = |count: usize| "circle ".repeat(count);
        for (count, most) in [(3, 77), (75, 77), (76, 77), (100, 77), (1, 3), (2, 3), (0, 3)] {
            let target = vocabulary.encode_target(&circles(count), most);
            let whole = vocabulary.encode(&circles(count), 1000);
            assert_eq!((whole.len(), vocabulary.length(&circles(count))), (count + 2, count + 2));
            assert_eq!(target, whole[..whole.len().min(most)], "{count} tokens, {most} at most");
            assert_eq!(target.last() == Some(&vocabulary.end()), count + 2 <= most, "{count} tokens, {most} at most");
        }
    }

    #[test]
    fn no_token_is_longer_than_is_said() {
        let vocabulary = Vocabulary::full();
        let longest = (0..vocabulary.begin()).map(|id| vocabulary.decode(&[id]).len()).max();
        assert!(longest.unwrap() <= MAX_TOKEN_BYTES, "{longest:?}");
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        /// Text, tokens between begin and end, those of the slow tokenizer if they differ (else
        /// null), and those of `clip.tokenize` if they differ.
        groups: std::collections::BTreeMap<String, Vec<Vec<serde_json::Value>>>,
        /// Text, and the tokens of `clip.tokenize`.
        cleaned: Vec<[serde_json::Value; 2]>,
    }

    fn golden() -> Golden {
        let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let golden = std::env::var_os("DICO_PARITY").map_or(golden, Into::into).join("tokens.json");
        serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap()
    }

    #[test]
    fn golden_tokens_of_cleaned_texts_are_those_of_clips_own_tokenizer() {
        let (golden, vocabulary) = (golden(), Vocabulary::full());
        assert!(golden.cleaned.len() >= 500);
        // Without an entry of its own it gives the same as the fast one.
        let others =
            golden.groups.values().flatten().filter(|entry| entry.len() < 4).map(|entry| (&entry[0], &entry[1]));
        let own = golden.groups.values().flatten().filter(|entry| entry.len() == 4).map(|entry| (&entry[0], &entry[3]));
        let new = golden.cleaned.iter().map(|entry| (&entry[0], &entry[1]));
        let wrong: Vec<String> = others
            .chain(own)
            .chain(new)
            .filter_map(|(text, expected)| {
                let (text, expected) =
                    (text.as_str().unwrap(), serde_json::from_value::<Vec<i64>>(expected.clone()).unwrap());
                let found = vocabulary.encode_cleaned(text, 77);
                (found[1..found.len() - 1] != expected).then(|| format!("{text:?} gives {found:?}, not {expected:?}"))
            })
            .collect();
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n"));
    }

    #[test]
    fn golden_tokens_are_those_of_hugging_faces_tokenizer() {
        let golden = golden();
        let vocabulary = Vocabulary::full();
        let mut wrong = Vec::new();
        let entries: Vec<_> =
            golden.groups.iter().flat_map(|(group, entries)| entries.iter().map(move |e| (group, e))).collect();
        for (group, entry) in &entries {
            let text = entry[0].as_str().unwrap();
            let expected: Vec<i64> = serde_json::from_value(entry[1].clone()).unwrap();
            let found = vocabulary.encode(text, 77);
            if found[1..found.len() - 1] != expected {
                wrong.push(format!("{group}: {text:?} gives {found:?}, not {expected:?}"));
            }
        }
        assert!(entries.len() >= 5000);
        assert!(
            wrong.is_empty(),
            "{} of {} differ:\n{}",
            wrong.len(),
            entries.len(),
            wrong[..wrong.len().min(20)].join("\n")
        );
    }
}
