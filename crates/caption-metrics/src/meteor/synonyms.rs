//! The tables of the synonym stage: synonym sets of WordNet 3, and base forms of inflected words.

use super::id_multimap::IdMultimap;
use super::interner::{InternerFullError, StringInterner};

/// WordNet's rules that replace the ending of an inflected word to get its base form. The first
/// rule that gives a word with synonyms applies.
const ENDING_RULES: &[(&str, &str)] = &[
    ("s", ""),
    ("ses", "s"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", "e"),
    ("ing", ""),
    ("er", ""),
    ("est", ""),
    ("er", "e"),
    ("est", "e"),
];

/// An error in the content of the synonym tables.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SynonymTableError {
    #[error("ends within an entry")]
    IncompleteEntry,
    #[error("{0:?} is not the number of a synonym set")]
    InvalidSetNumber(String),
    #[error("too many words")]
    TooManyWords,
}

impl From<InternerFullError> for SynonymTableError {
    fn from(InternerFullError: InternerFullError) -> Self {
        Self::TooManyWords
    }
}

/// Synonym sets by word.
#[derive(Debug)]
pub(super) struct SynonymTable {
    /// The words of both tables: those with synonyms, base forms and inflected forms.
    words: StringInterner,
    /// The synonym sets of a word.
    sets: IdMultimap,
    /// The base forms of irregular inflected words.
    base_forms: IdMultimap,
}

impl SynonymTable {
    /// Parses both tables. Their entries have two lines: in `sets` a word and the numbers of its
    /// synonym sets, in `exceptions` a base form and its irregular inflected forms.
    pub fn parse(sets: &str, exceptions: &str) -> Result<Self, SynonymTableError> {
        let mut words = StringInterner::default();
        let mut word_to_set = Vec::new();
        let mut form_to_base = Vec::new();
        for entry in entries(sets) {
            let (word, numbers) = entry?;
            let word = words.intern(word.as_bytes())?;
            for number in numbers.split_whitespace() {
                let number = number.parse().map_err(|_| SynonymTableError::InvalidSetNumber(number.to_owned()))?;
                word_to_set.push((word, number));
            }
        }
        for entry in entries(exceptions) {
            let (base, inflected) = entry?;
            let base = words.intern(base.as_bytes())?;
            for form in inflected.split_whitespace() {
                form_to_base.push((words.intern(form.as_bytes())?, base));
            }
        }
        let [sets, base_forms] = [word_to_set, form_to_base].map(|pairs| IdMultimap::from_pairs(&pairs, words.len()));
        Ok(Self { words, sets, base_forms })
    }

    /// The synonym sets of `word` and of its base forms, sorted.
    pub fn sets_of(&self, word: &str) -> Vec<u32> {
        let id = self.words.find(word.as_bytes());
        let mut sets = id.map(|id| self.sets.get(id).to_vec()).unwrap_or_default();
        match id.map(|id| self.base_forms.get(id)).unwrap_or_default() {
            [] => sets.extend_from_slice(self.sets_of_regular_base_form(word).unwrap_or_default()),
            base_forms => sets.extend(base_forms.iter().flat_map(|&base| self.sets.get(base))),
        }
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    fn sets_of_regular_base_form(&self, word: &str) -> Option<&[u32]> {
        if word.ends_with("ss") || word.chars().nth(2).is_none() {
            return None;
        }
        ENDING_RULES.iter().find_map(|(ending, base_ending)| {
            let base = [word.strip_suffix(ending)?, base_ending].concat();
            let sets = self.sets.get(self.words.find(base.as_bytes())?);
            (!sets.is_empty()).then_some(sets)
        })
    }
}

/// The entries of a table, of two lines each.
fn entries(text: &str) -> impl Iterator<Item = Result<(&str, &str), SynonymTableError>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let word = lines.next()?;
        Some(lines.next().map(|values| (word, values)).ok_or(SynonymTableError::IncompleteEntry))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_sets_of_their_base_forms() {
        let sets = "box\n1\nhop\n2 3\nhope\n4\nman\n5\nmouse\n6\nglass\n7\nfly\n8\nis\n9\ni\n10\nlarge\n11\n";
        let synonyms = SynonymTable::parse(sets, "mouse\nmice\nman\nmen\nhop\nhopes\n").unwrap();
        for (word, expected) in [
            ("box", &[1][..]),
            ("boxes", &[1]),
            ("hoped", &[4]),
            ("hoping", &[4]),
            // An irregular form, to which the ending rules do not apply.
            ("hopes", &[2, 3]),
            ("mice", &[6]),
            ("firemen", &[]),
            ("men", &[5]),
            ("glass", &[7]),
            ("glasses", &[7]),
            ("flies", &[8]),
            // Too short to have an ending.
            ("is", &[9]),
            ("largest", &[11]),
            ("", &[]),
            ("unknown", &[]),
        ] {
            assert_eq!(synonyms.sets_of(word), expected, "{word}");
        }
    }

    #[test]
    fn invalid_tables_are_refused() {
        let problem = |sets, exceptions| SynonymTable::parse(sets, exceptions).unwrap_err().to_string();
        assert_eq!(problem("dog\n1\ncat", ""), "ends within an entry");
        assert_eq!(problem("dog\n1 x", ""), "\"x\" is not the number of a synonym set");
        assert_eq!(problem("", "dog"), "ends within an entry");
    }
}
