//! The grammar of the caption language, and its parser.
//!
//! ```text
//! caption  = [intro] clause {"and" clause}
//! clause   = noun {relation noun}
//! noun     = ("a" | "an") [size] [colour] shape
//! ```
//!
//! A relation links the noun before it to the noun after it: in "A above B left of C", B is left of
//! C. Each noun is a different object; there are no back-references. "an" stands before vowels
//! only. The next phrase always decides which rule applies. The grammar is therefore unambiguous,
//! and one loop parses it without further look-ahead.

use crate::scene::{Colour, Relation, Shape, Size};
use crate::words::{AND, INTRODUCTIONS, article};

/// Longer texts count as ungrammatical, so that long captions of a model cost no time. Captions of
/// the caption writer have about half as many words at most.
const MAX_PARSED_WORDS: usize = 64;

/// The claims that a caption makes about a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// Descriptions of the objects that the caption claims to exist, each of a different object; at
    /// least one.
    pub phrases: Vec<NounPhrase>,
    /// Relations between these objects.
    pub relations: Vec<RelationClaim>,
}

/// A noun phrase: the description of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NounPhrase {
    /// The size, if stated.
    pub size: Option<Size>,
    /// The colour, if stated.
    pub colour: Option<Colour>,
    /// The shape.
    pub shape: Shape,
}

/// A claimed relation between two objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationClaim {
    /// The index in [`Claims::phrases`] of the object that has the relation.
    pub subject: usize,
    /// The relation.
    pub relation: Relation,
    /// The index in [`Claims::phrases`] of the object to which it has the relation.
    pub object: usize,
}

impl Claims {
    /// The number of claims: one for each object, stated colour, stated size and relation.
    #[must_use]
    pub fn details(&self) -> u32 {
        let count = |phrase: &NounPhrase| 1 + usize::from(phrase.colour.is_some()) + usize::from(phrase.size.is_some());
        let total = self.phrases.iter().map(count).sum::<usize>() + self.relations.len();
        u32::try_from(total).unwrap_or(u32::MAX)
    }
}

/// Parses `caption`; none if it is ungrammatical. Words must be separated by exactly one space,
/// with none at either end.
#[must_use]
pub fn parse_caption(caption: &str) -> Option<Claims> {
    let all_words: Vec<&str> = caption.split(' ').take(MAX_PARSED_WORDS + 1).collect();
    if all_words.len() > MAX_PARSED_WORDS {
        return None;
    }
    let mut reader = WordReader { remaining: &all_words };
    let _introduction = INTRODUCTIONS.into_iter().find(|introduction| reader.read_phrase(introduction));

    let mut claims = Claims { phrases: vec![reader.read_noun_phrase()?], relations: Vec::new() };
    while !reader.remaining.is_empty() {
        if !reader.read_phrase(AND) {
            let relation = reader.read_relation()?;
            let object = claims.phrases.len();
            claims.relations.push(RelationClaim { subject: object - 1, relation, object });
        }
        claims.phrases.push(reader.read_noun_phrase()?);
    }
    Some(claims)
}

/// Reads phrases from the words of a caption.
struct WordReader<'a> {
    remaining: &'a [&'a str],
}

impl WordReader<'_> {
    /// Reads `phrase` if it is next; otherwise reads nothing.
    fn read_phrase(&mut self, phrase: &str) -> bool {
        let mut rest = self.remaining.iter();
        if phrase.split(' ').any(|word| rest.next() != Some(&word)) {
            return false;
        }
        self.remaining = rest.as_slice();
        true
    }

    fn read_noun_phrase(&mut self) -> Option<NounPhrase> {
        let (article_word, rest) = self.remaining.split_first()?;
        if *article_word != article(rest.first()?) {
            return None;
        }
        self.remaining = rest;
        let size = Size::ALL.into_iter().find(|size| size.words().into_iter().any(|word| self.read_phrase(word)));
        let colour = Colour::ALL.into_iter().find(|colour| self.read_phrase(colour.word()));
        let shape = Shape::ALL.into_iter().find(|shape| self.read_phrase(shape.word()))?;
        Some(NounPhrase { size, colour, shape })
    }

    fn read_relation(&mut self) -> Option<Relation> {
        Relation::ALL.into_iter().find(|relation| relation.phrases().into_iter().any(|phrase| self.read_phrase(phrase)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noun(size: Option<Size>, colour: Option<Colour>, shape: Shape) -> NounPhrase {
        NounPhrase { size, colour, shape }
    }

    #[test]
    fn a_caption_is_parsed_into_its_claims() {
        let claims = parse_caption(
            "there is a big red circle above an orange star and a triangle to the left of a little cross",
        );
        let expected = Claims {
            phrases: vec![
                noun(Some(Size::Large), Some(Colour::Red), Shape::Circle),
                noun(None, Some(Colour::Orange), Shape::Star),
                noun(None, None, Shape::Triangle),
                noun(Some(Size::Small), None, Shape::Cross),
            ],
            relations: vec![
                RelationClaim { subject: 0, relation: Relation::Above, object: 1 },
                RelationClaim { subject: 2, relation: Relation::LeftOf, object: 3 },
            ],
        };
        assert_eq!(claims, Some(expected));
    }

    #[test]
    fn relations_link_adjacent_nouns() {
        let claims = parse_caption("a triangle over a star left of a cross").unwrap();
        assert_eq!(claims.relations[1], RelationClaim { subject: 1, relation: Relation::LeftOf, object: 2 });
        assert_eq!(claims.details(), 5);
    }

    #[test]
    fn ungrammatical_captions_are_refused() {
        for caption in [
            "",
            " ",
            "a",
            "and",
            "circle",
            "a red",
            "a circle a square",
            "a circle and",
            "and a circle",
            "a circle and and a square",
            "a circle above",
            "a circle above and a square",
            "a circle left a square",
            "a circle to the left a square",
            "a circle to left of a square",
            "a circle above over a square",
            "a red large circle",
            "a large big circle",
            "a red red circle",
            "a orange circle",
            "an red circle",
            "an large orange circle",
            "there is",
            "there is there is a circle",
            "a picture of circle",
            "a circle there is a square",
            "a  circle",
            " a circle",
            "a circle ",
            "a circle\n",
            "A circle",
            "a circle.",
            "a circle, a square",
            "a circles",
            "a pink circle",
        ] {
            assert_eq!(parse_caption(caption), None, "{caption:?}");
        }
    }

    #[test]
    fn long_captions_are_refused() {
        let caption_of = |nouns: usize| vec!["a star"; nouns].join(" and ");
        assert_eq!(parse_caption(&caption_of(21)).unwrap().phrases.len(), 21);
        assert_eq!(parse_caption(&caption_of(22)), None, "65 words");
        assert_eq!(parse_caption(&caption_of(1_000_000)), None);
        assert_eq!(parse_caption(&"a".repeat(10_000_000)), None);
        assert_eq!(parse_caption(&" ".repeat(10_000_000)), None);
    }
}
