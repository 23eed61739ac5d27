//! What the stages need to know of words and phrases, looked up once each.

use std::collections::HashMap;

use rust_stemmers::{Algorithm, Stemmer};

use super::matches::Span;
use super::tables::Tables;

/// A word, by its number in the lexicon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub usize);

/// A phrase that has paraphrases, where a caption has it.
pub(super) struct Phrase {
    pub span: Span,
    /// In the lexicon.
    number: usize,
}

/// Runs of words, none empty.
#[derive(Default)]
struct Runs {
    words: Vec<Word>,
    /// Where each run ends in `words`.
    ends: Vec<usize>,
}

/// The words and phrases met so far.
pub(super) struct Lexicon {
    numbers: HashMap<String, Word>,
    entries: Vec<Entry>,
    /// By their number in the table of paraphrases.
    phrases: HashMap<u32, usize>,
    paraphrases: Vec<Runs>,
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
        Self {
            numbers: HashMap::new(),
            entries: Vec::new(),
            phrases: HashMap::new(),
            paraphrases: Vec::new(),
            stemmer: Stemmer::create(Algorithm::English),
        }
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

    /// The phrases in a caption of `words` that have paraphrases, the shorter first where several start at a word.
    pub fn phrases(&mut self, words: &[String], tables: &Tables) -> Vec<Phrase> {
        let Some(table) = &tables.paraphrases else { return Vec::new() };
        let mut found = Vec::new();
        let mut text = String::new();
        for start in 0..words.len() {
            text.clear();
            for (length, word) in (1..=table.longest()).zip(&words[start..]) {
                text.push_str(word);
                if let Some(in_table) = table.find(&text) {
                    let known = self.phrases.get(&in_table).copied();
                    let number = known.unwrap_or_else(|| self.add_phrase(in_table, table.of(in_table), tables));
                    found.push(Phrase { span: Span { start, length }, number });
                }
                text.push(' ');
            }
        }
        found
    }

    fn add_phrase<'t>(&mut self, in_table: u32, paraphrases: impl Iterator<Item = &'t str>, tables: &Tables) -> usize {
        let mut runs = Runs::default();
        for paraphrase in paraphrases {
            runs.words.extend(paraphrase.split_ascii_whitespace().map(|text| self.word(text, tables)));
            if runs.words.len() > runs.ends.last().copied().unwrap_or_default() {
                runs.ends.push(runs.words.len());
            }
        }
        self.paraphrases.push(runs);
        let number = self.paraphrases.len() - 1;
        self.phrases.insert(in_table, number);
        number
    }

    /// What `phrase` may be replaced by, in the order of the table.
    pub fn paraphrases(&self, phrase: &Phrase) -> impl Iterator<Item = &[Word]> {
        self.paraphrases[phrase.number].iter()
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

impl Runs {
    fn iter(&self) -> impl Iterator<Item = &[Word]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.words[start..end])
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
        assert_eq!(key("playgrounds"), -1_948_022_248);
    }
}
