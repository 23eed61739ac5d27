//! The caption language, read word by word.
//!
//! ```text
//! caption  = [intro] clause {"and" clause}
//! clause   = noun {relation noun}
//! noun     = ("a" | "an") [size] [colour] shape
//! ```
//!
//! A relation links the noun before it to the noun after it: in "A above B left of C", B is left of C. Each noun is an
//! object of its own; nothing refers back. "an" stands before vowels only. So every caption has one reading, found
//! without look-ahead beyond the phrase at hand, in one loop.

use crate::scene::{Colour, Relation, Shape, Size};
use crate::words::{AND, INTROS, article};

/// Longer texts are not read: what a model babbles must not cost time. The writer needs half of it.
const MAX_LENGTH: usize = 64;

/// What a caption claims of a scene.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// That there are such objects, all different ones; at least one.
    pub phrases: Vec<Phrase>,
    /// That they lie so to each other.
    pub links: Vec<Link>,
}

/// One noun phrase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phrase {
    /// The size, where it is named.
    pub size: Option<Size>,
    /// The colour, where it is named.
    pub colour: Option<Colour>,
    /// The shape.
    pub shape: Shape,
}

/// One claimed relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index of the phrase of what lies so.
    pub subject: usize,
    /// How it lies.
    pub relation: Relation,
    /// Index of the phrase of what it lies so to.
    pub object: usize,
}

impl Claims {
    /// How many facts are claimed: one for each object, named colour, named size and relation.
    #[must_use]
    pub fn details(&self) -> u32 {
        let named = |phrase: &Phrase| 1 + usize::from(phrase.colour.is_some()) + usize::from(phrase.size.is_some());
        let facts = self.phrases.iter().map(named).sum::<usize>() + self.links.len();
        u32::try_from(facts).unwrap_or(u32::MAX)
    }
}

/// What `caption` claims, or `None` if it is not of the language. Words must be separated by exactly one space, with
/// none at either end.
#[must_use]
pub fn parse(caption: &str) -> Option<Claims> {
    let words: Vec<&str> = caption.split(' ').take(MAX_LENGTH + 1).collect();
    if words.len() > MAX_LENGTH {
        return None;
    }
    let mut reader = Reader { words: &words };
    let _intro = INTROS.into_iter().find(|intro| reader.skip(intro));

    let mut claims = Claims { phrases: vec![reader.noun()?], links: Vec::new() };
    while !reader.words.is_empty() {
        if !reader.skip(AND) {
            let relation = reader.relation()?;
            let object = claims.phrases.len();
            claims.links.push(Link { subject: object - 1, relation, object });
        }
        claims.phrases.push(reader.noun()?);
    }
    Some(claims)
}

/// The words not yet read.
struct Reader<'a> {
    words: &'a [&'a str],
}

impl Reader<'_> {
    /// Reads `phrase` if it is next; otherwise reads nothing.
    fn skip(&mut self, phrase: &str) -> bool {
        let mut rest = self.words.iter();
        if phrase.split(' ').any(|word| rest.next() != Some(&word)) {
            return false;
        }
        self.words = rest.as_slice();
        true
    }

    fn noun(&mut self) -> Option<Phrase> {
        let (article_read, rest) = self.words.split_first()?;
        if *article_read != article(rest.first()?) {
            return None;
        }
        self.words = rest;
        let size = Size::ALL.into_iter().find(|size| size.words().into_iter().any(|word| self.skip(word)));
        let colour = Colour::ALL.into_iter().find(|colour| self.skip(colour.word()));
        let shape = Shape::ALL.into_iter().find(|shape| self.skip(shape.word()))?;
        Some(Phrase { size, colour, shape })
    }

    fn relation(&mut self) -> Option<Relation> {
        Relation::ALL.into_iter().find(|relation| relation.phrases().into_iter().any(|phrase| self.skip(phrase)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noun(size: Option<Size>, colour: Option<Colour>, shape: Shape) -> Phrase {
        Phrase { size, colour, shape }
    }

    #[test]
    fn reads_what_it_says() {
        let claims =
            parse("there is a big red circle above an orange star and a triangle to the left of a little cross");
        let expected = Claims {
            phrases: vec![
                noun(Some(Size::Large), Some(Colour::Red), Shape::Circle),
                noun(None, Some(Colour::Orange), Shape::Star),
                noun(None, None, Shape::Triangle),
                noun(Some(Size::Small), None, Shape::Cross),
            ],
            links: vec![
                Link { subject: 0, relation: Relation::Above, object: 1 },
                Link { subject: 2, relation: Relation::LeftOf, object: 3 },
            ],
        };
        assert_eq!(claims, Some(expected));
    }

    #[test]
    fn relations_link_neighbours() {
        let claims = parse("a triangle over a star left of a cross").unwrap();
        assert_eq!(claims.links[1], Link { subject: 1, relation: Relation::LeftOf, object: 2 });
        assert_eq!(claims.details(), 5);
    }

    #[test]
    fn refuses_everything_else() {
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
            assert_eq!(parse(caption), None, "{caption:?}");
        }
    }

    #[test]
    fn length_is_bounded() {
        let of = |nouns: usize| vec!["a star"; nouns].join(" and ");
        assert_eq!(parse(&of(21)).unwrap().phrases.len(), 21);
        assert_eq!(parse(&of(22)), None, "65 words");
        assert_eq!(parse(&of(1_000_000)), None);
        assert_eq!(parse(&"a".repeat(10_000_000)), None);
        assert_eq!(parse(&" ".repeat(10_000_000)), None);
    }
}
