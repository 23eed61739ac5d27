//! The lexicon: the properties of words and phrases that the matchers need, each looked up once.

use std::collections::HashMap;

use rust_stemmers::{Algorithm, Stemmer};

use super::matcher::WordSpan;
use super::tables::MeteorTables;

/// The id of a word in the lexicon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WordId(pub usize);

/// An occurrence in a caption of a phrase that has paraphrases.
pub(super) struct PhraseOccurrence {
    pub span: WordSpan,
    /// The index of the phrase in the lexicon.
    phrase_index: usize,
}

/// Sequences of words, none empty.
#[derive(Default)]
struct WordSequences {
    words: Vec<WordId>,
    /// The end of each sequence in `words`.
    ends: Vec<usize>,
}

/// The words and phrases of all captions that were looked up so far.
pub(super) struct Lexicon {
    ids: HashMap<String, WordId>,
    /// The properties of each word, by its id.
    entries: Vec<WordEntry>,
    /// The index of each phrase in `paraphrases`, by its id in the paraphrase table.
    phrases: HashMap<u32, usize>,
    /// The paraphrases of each phrase.
    paraphrases: Vec<WordSequences>,
    stemmer: Stemmer,
}

/// The properties of a word.
struct WordEntry {
    /// Java's hash code of the word.
    hash: i32,
    /// Java's hash code of the word's stem.
    stem_hash: i32,
    is_function_word: bool,
    /// Sorted numbers of the word's synonym sets.
    synonym_sets: Vec<u32>,
}

impl Lexicon {
    pub fn new() -> Self {
        Self {
            ids: HashMap::new(),
            entries: Vec::new(),
            phrases: HashMap::new(),
            paraphrases: Vec::new(),
            stemmer: Stemmer::create(Algorithm::English),
        }
    }

    /// The id of a word; a new word is added with its properties.
    pub fn word(&mut self, text: &str, tables: &MeteorTables) -> WordId {
        if let Some(&word) = self.ids.get(text) {
            return word;
        }
        let word = WordId(self.entries.len());
        self.entries.push(WordEntry {
            hash: java_hash_code(text),
            stem_hash: java_hash_code(&self.stemmer.stem(text)),
            is_function_word: tables.function_words.contains(text),
            synonym_sets: tables.synonyms.as_ref().map(|synonyms| synonyms.sets_of(text)).unwrap_or_default(),
        });
        self.ids.insert(text.into(), word);
        word
    }

    /// The phrases of a caption that have paraphrases, in order. If phrases start at the same word,
    /// the shorter one comes first.
    pub fn phrases(&mut self, words: &[String], tables: &MeteorTables) -> Vec<PhraseOccurrence> {
        let Some(table) = &tables.paraphrases else { return Vec::new() };
        let mut occurrences = Vec::new();
        let mut text = String::new();
        for start in 0..words.len() {
            text.clear();
            for (length, word) in (1..=table.max_phrase_words()).zip(&words[start..]) {
                text.push_str(word);
                if let Some(table_id) = table.phrase_id(&text) {
                    let existing = self.phrases.get(&table_id).copied();
                    let phrase_index =
                        existing.unwrap_or_else(|| self.add_phrase(table_id, table.paraphrases(table_id), tables));
                    occurrences.push(PhraseOccurrence { span: WordSpan { start, length }, phrase_index });
                }
                text.push(' ');
            }
        }
        occurrences
    }

    fn add_phrase<'t>(
        &mut self,
        table_id: u32,
        paraphrases: impl Iterator<Item = &'t str>,
        tables: &MeteorTables,
    ) -> usize {
        let mut sequences = WordSequences::default();
        for paraphrase in paraphrases {
            sequences.words.extend(paraphrase.split_ascii_whitespace().map(|text| self.word(text, tables)));
            if sequences.words.len() > sequences.ends.last().copied().unwrap_or_default() {
                sequences.ends.push(sequences.words.len());
            }
        }
        self.paraphrases.push(sequences);
        let phrase_index = self.paraphrases.len() - 1;
        self.phrases.insert(table_id, phrase_index);
        phrase_index
    }

    /// The paraphrases of `phrase`, in the order of the table.
    pub fn paraphrases(&self, phrase: &PhraseOccurrence) -> impl Iterator<Item = &[WordId]> {
        self.paraphrases[phrase.phrase_index].iter()
    }

    /// Java's hash code of a word. METEOR considers words with equal hash codes equal.
    pub fn word_hash(&self, word: WordId) -> i32 {
        self.entries[word.0].hash
    }

    /// Java's hash code of a word's stem. METEOR considers stems with equal hash codes equal.
    pub fn stem_hash(&self, word: WordId) -> i32 {
        self.entries[word.0].stem_hash
    }

    pub fn is_function_word(&self, word: WordId) -> bool {
        self.entries[word.0].is_function_word
    }

    /// Whether the words have a common synonym set.
    pub fn are_synonyms(&self, a: WordId, b: WordId) -> bool {
        let [a, b] = [a, b].map(|word| &self.entries[word.0].synonym_sets);
        a.iter().any(|set| b.binary_search(set).is_ok())
    }
}

impl WordSequences {
    fn iter(&self) -> impl Iterator<Item = &[WordId]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.words[start..end])
    }
}

/// Java's hash code of a string. METEOR compares only hash codes, so it considers words with the
/// same hash code equal.
fn java_hash_code(text: &str) -> i32 {
    text.encode_utf16().fold(0, |hash: i32, unit| hash.wrapping_mul(31).wrapping_add(unit.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_codes_equal_those_of_java() {
        assert_eq!(["", "a", "dog", "Aa", "BB"].map(java_hash_code), [0, 97, 99644, 2112, 2112]);
        assert_eq!(java_hash_code("playgrounds"), -1_948_022_248);
    }
}
