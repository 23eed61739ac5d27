//! What the stages need to know of each word, looked up once.

use std::collections::HashMap;

use rust_stemmers::{Algorithm, Stemmer};

use super::tables::Tables;

/// A word, by its number in the lexicon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(usize);

/// The words met so far.
pub(super) struct Lexicon {
    numbers: HashMap<String, Word>,
    entries: Vec<Entry>,
    stemmer: Stemmer,
}

struct Entry {
    key: i32,
    stem_key: i32,
    is_function_word: bool,
    /// Sorted.
    synonym_sets: Vec<u32>,
}

impl Lexicon {
    pub fn new() -> Self {
        Self { numbers: HashMap::new(), entries: Vec::new(), stemmer: Stemmer::create(Algorithm::English) }
    }

    pub fn word(&mut self, text: &str, tables: &Tables) -> Word {
        if let Some(&word) = self.numbers.get(text) {
            return word;
        }
        let word = Word(self.entries.len());
        self.entries.push(Entry {
            key: key(text),
            stem_key: key(&self.stemmer.stem(text)),
            is_function_word: tables.function_words.contains(text),
            synonym_sets: tables.synonyms.as_ref().map(|synonyms| synonyms.sets_of(text)).unwrap_or_default(),
        });
        self.numbers.insert(text.into(), word);
        word
    }

    /// Words of the same key are the same word.
    pub fn key(&self, word: Word) -> i32 {
        self.entries[word.0].key
    }

    /// Words of the same key have the same stem.
    pub fn stem_key(&self, word: Word) -> i32 {
        self.entries[word.0].stem_key
    }

    pub fn is_function_word(&self, word: Word) -> bool {
        self.entries[word.0].is_function_word
    }

    /// Whether the words have a set of synonyms in common.
    pub fn are_synonyms(&self, a: Word, b: Word) -> bool {
        let [a, b] = [a, b].map(|word| &self.entries[word.0].synonym_sets);
        a.iter().any(|set| b.binary_search(set).is_ok())
    }
}

/// The reference compares words by Java's hash code alone, so that words that share it are the same to it.
fn key(text: &str) -> i32 {
    text.encode_utf16().fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(unit.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hash_codes_of_java() {
        assert_eq!(["", "a", "dog", "Aa", "BB"].map(key), [0, 97, 99644, 2112, 2112]);
        assert_eq!(key("photographers"), -1_186_412_470);
    }
}
