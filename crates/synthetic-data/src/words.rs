//! The words of the caption language, shared by the caption writer and the grammar. All are plain
//! lower-case English. The words of a phrase are separated by single spaces.

use std::collections::BTreeSet;

use crate::scene::{Colour, Relation, Shape, Size};

/// Phrases that may precede the first object of a caption.
pub(crate) const INTRODUCTIONS: [&str; 3] = ["there is", "a picture of", "a drawing of"];

/// The word between two objects without a stated relation.
pub(crate) const AND: &str = "and";

/// The article before `word`.
pub(crate) fn article(word: &str) -> &'static str {
    if word.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" }
}

impl Shape {
    /// The shape's name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Star => "star",
            Self::Cross => "cross",
        }
    }
}

impl Colour {
    /// The colour's name.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Purple => "purple",
        }
    }
}

impl Size {
    /// The words that mean the size.
    #[must_use]
    pub const fn words(self) -> [&'static str; 2] {
        match self {
            Self::Large => ["large", "big"],
            Self::Small => ["small", "little"],
        }
    }
}

impl Relation {
    /// The phrases that mean the relation. No phrase is a prefix of another, so the parser needs no
    /// look-ahead.
    #[must_use]
    pub const fn phrases(self) -> [&'static str; 3] {
        match self {
            Self::LeftOf => ["left of", "to the left of", "on the left of"],
            Self::RightOf => ["right of", "to the right of", "on the right of"],
            Self::Above => ["above", "over", "higher than"],
            Self::Below => ["below", "under", "lower than"],
        }
    }
}

/// All words of the caption language, in alphabetical order.
#[must_use]
pub fn vocabulary() -> Vec<&'static str> {
    let phrases = ["a", "an", AND]
        .into_iter()
        .chain(INTRODUCTIONS)
        .chain(Shape::ALL.map(Shape::word))
        .chain(Colour::ALL.map(Colour::word))
        .chain(Size::ALL.into_iter().flat_map(Size::words))
        .chain(Relation::ALL.into_iter().flat_map(Relation::phrases));
    phrases.flat_map(|phrase| phrase.split(' ')).collect::<BTreeSet<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_a_single_clip_token() {
        let tokenizer = instant_clip_tokenizer::Tokenizer::new();
        for word in vocabulary() {
            let mut tokens = Vec::new();
            tokenizer.encode(word, &mut tokens);
            assert_eq!(tokens.len(), 1, "{word}");
            assert!(word.bytes().all(|byte| byte.is_ascii_lowercase()), "{word}");
        }
    }

    #[test]
    fn no_relation_phrase_is_a_prefix_of_another() {
        let phrases: Vec<_> = Relation::ALL.into_iter().flat_map(Relation::phrases).collect();
        for a in &phrases {
            assert_eq!(phrases.iter().filter(|b| format!("{b} ").starts_with(&format!("{a} "))).count(), 1, "{a}");
        }
    }
}
