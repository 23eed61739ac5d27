//! The synonym stage's table: sets of synonyms from WordNet 3, and base forms of inflected words.

use super::interner::{Interner, InternerFull};
use super::lists::Lists;

/// How an ending becomes that of a base form, in WordNet's order: the first that leads to a word with synonyms holds.
const BASE_ENDINGS: &[(&str, &str)] = &[
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

/// Sets of synonyms by word.
#[derive(Debug)]
pub(super) struct Synonyms {
    words: Interner,
    /// The sets of a word.
    sets: Lists,
    /// The base forms of a word that no ending tells.
    bases: Lists,
}

impl Synonyms {
    /// Both tables have two lines an entry: in `sets` a word and the numbers of its sets, in `exceptions` a base form
    /// and its inflected forms. What is wrong with them is returned as text.
    pub fn parse(sets: &str, exceptions: &str) -> Result<Self, String> {
        let mut words = Interner::default();
        let mut in_sets = Vec::new();
        let mut to_bases = Vec::new();
        for entry in entries(sets) {
            let (word, numbers) = entry?;
            let word = words.intern(word.as_bytes()).map_err(too_many)?;
            for number in numbers.split_whitespace() {
                let number = number.parse().map_err(|_| format!("{number:?} is not the number of a synonym set"))?;
                in_sets.push((word, number));
            }
        }
        for entry in entries(exceptions) {
            let (base, inflected) = entry?;
            let base = words.intern(base.as_bytes()).map_err(too_many)?;
            for form in inflected.split_whitespace() {
                to_bases.push((words.intern(form.as_bytes()).map_err(too_many)?, base));
            }
        }
        let [sets, bases] = [in_sets, to_bases].map(|pairs| Lists::of_pairs(&pairs, words.len()));
        Ok(Self { words, sets, bases })
    }

    /// The sets that `word` or one of its base forms is in, sorted.
    pub fn sets_of(&self, word: &str) -> Vec<u32> {
        let number = self.words.find(word.as_bytes());
        let mut sets = number.map(|number| self.sets.of(number).to_vec()).unwrap_or_default();
        match number.map(|number| self.bases.of(number)).unwrap_or_default() {
            [] => sets.extend_from_slice(self.sets_of_regular_base(word).unwrap_or_default()),
            bases => sets.extend(bases.iter().flat_map(|&base| self.sets.of(base))),
        }
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    fn sets_of_regular_base(&self, word: &str) -> Option<&[u32]> {
        if word.ends_with("ss") || word.chars().nth(2).is_none() {
            return None;
        }
        BASE_ENDINGS.iter().find_map(|(ending, of_base)| {
            let base = [word.strip_suffix(ending)?, of_base].concat();
            let sets = self.sets.of(self.words.find(base.as_bytes())?);
            (!sets.is_empty()).then_some(sets)
        })
    }
}

fn too_many(InternerFull: InternerFull) -> String {
    "too many words".into()
}

/// The entries of two lines each.
fn entries(text: &str) -> impl Iterator<Item = Result<(&str, &str), String>> {
    let mut lines = text.lines();
    std::iter::from_fn(move || {
        let word = lines.next()?;
        Some(lines.next().map(|listed| (word, listed)).ok_or_else(|| "ends within an entry".into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_the_sets_of_their_base_forms() {
        let sets = "box\n1\nhop\n2 3\nhope\n4\nman\n5\nmouse\n6\nglass\n7\nfly\n8\nis\n9\ni\n10\nlarge\n11\n";
        let synonyms = Synonyms::parse(sets, "mouse\nmice\nman\nmen\nhop\nhopes\n").unwrap();
        for (word, expected) in [
            ("box", &[1][..]),
            ("boxes", &[1]),
            ("hoped", &[4]),
            ("hoping", &[4]),
            // Listed as irregular, so that its ending does not count.
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
    fn broken_tables_are_told() {
        let problem = |sets, exceptions| Synonyms::parse(sets, exceptions).unwrap_err();
        assert_eq!(problem("dog\n1\ncat", ""), "ends within an entry");
        assert_eq!(problem("dog\n1 x", ""), "\"x\" is not the number of a synonym set");
        assert_eq!(problem("", "dog"), "ends within an entry");
    }
}
