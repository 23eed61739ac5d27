//! Captions as token ids: tokenised once, then read by every metric.

use std::collections::HashMap;

use crate::Item;
use crate::tokens::Tokeniser;

/// The items of a job, tokenised and interned once. All metrics over references are functions of it.
///
/// A token of the reference tokeniser may hold a no-break space. pycocoevalcap's ROUGE-L splits captions at plain spaces
/// only and sees such a token whole; BLEU and CIDEr split at any white space and see its parts. Both readings are kept.
pub struct Corpus {
    /// Tokens as they are.
    tokens: Groups,
    /// Tokens split at white space.
    words: Groups,
    vocabulary: Vocabulary,
}

impl Corpus {
    /// Tokenises all captions of `items`.
    #[must_use]
    pub fn new(items: &[Item]) -> Self {
        let mut tokeniser = Tokeniser::default();
        let mut corpus =
            Self { tokens: Groups::default(), words: Groups::default(), vocabulary: Vocabulary::default() };
        for item in items {
            corpus.tokens.begin();
            corpus.words.begin();
            for caption in std::iter::once(&item.candidate).chain(&item.references) {
                tokeniser.each(caption, |token| corpus.push(token));
                corpus.tokens.end_caption();
                corpus.words.end_caption();
            }
        }
        corpus
    }

    /// Adds a token to the caption that is being written.
    fn push(&mut self, token: &str) {
        let whole = self.vocabulary.id(token);
        self.tokens.push(whole);
        if token.contains(char::is_whitespace) {
            token.split_whitespace().for_each(|word| self.words.push(self.vocabulary.id(word)));
        } else {
            self.words.push(whole);
        }
    }

    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Each item's candidate and references, as tokens.
    pub(crate) fn tokens(
        &self,
    ) -> impl ExactSizeIterator<Item = (&[u32], impl ExactSizeIterator<Item = &[u32]> + Clone)> {
        self.tokens.iter().map(candidate_first)
    }

    /// Each item's candidate and references, as words.
    pub(crate) fn words(
        &self,
    ) -> impl ExactSizeIterator<Item = (&[u32], impl ExactSizeIterator<Item = &[u32]> + Clone)> {
        self.words.iter().map(candidate_first)
    }

    /// The id of a word, where any caption has it.
    pub(crate) fn id(&self, word: &str) -> Option<u32> {
        self.vocabulary.get(word)
    }
}

fn candidate_first<'a, I: Iterator<Item = &'a [u32]>>(mut captions: I) -> (&'a [u32], I) {
    (captions.next().unwrap_or_default(), captions)
}

/// Numbers tokens in order of appearance, from 1; 0 is no token's id.
#[derive(Default)]
pub(crate) struct Vocabulary(HashMap<Box<str>, u32>);

impl Vocabulary {
    pub(crate) fn get(&self, token: &str) -> Option<u32> {
        self.0.get(token).copied()
    }

    /// The id of `token`, a new one at its first appearance.
    pub(crate) fn id(&mut self, token: &str) -> u32 {
        self.get(token).unwrap_or_else(|| {
            let id = self.last() + 1;
            self.0.insert(token.into(), id);
            id
        })
    }

    /// The id that was given last; 0 if none was.
    pub(crate) fn last(&self) -> u32 {
        u32::try_from(self.0.len()).expect("fewer than 2^32 different tokens")
    }
}

/// Captions as ids, in groups, all in one block of memory.
#[derive(Default)]
pub(crate) struct Groups {
    ids: Vec<u32>,
    /// Where each caption ends in `ids`.
    ends: Vec<usize>,
    /// The position in `ends` of each group's first caption.
    firsts: Vec<usize>,
}

impl Groups {
    /// Begins a group.
    pub(crate) fn begin(&mut self) {
        self.firsts.push(self.ends.len());
    }

    /// Adds an id to the caption that is being written.
    pub(crate) fn push(&mut self, id: u32) {
        self.ids.push(id);
    }

    /// Ends a caption of the group that was begun last.
    pub(crate) fn end_caption(&mut self) {
        self.ends.push(self.ids.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.firsts.len()
    }

    /// The captions of a group.
    pub(crate) fn get(&self, group: usize) -> impl ExactSizeIterator<Item = &[u32]> + Clone {
        let next = self.firsts.get(group + 1).copied().unwrap_or(self.ends.len());
        (self.firsts[group]..next).map(|index| {
            let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
            &self.ids[start..self.ends[index]]
        })
    }

    /// The captions of all groups.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = impl ExactSizeIterator<Item = &[u32]> + Clone> {
        (0..self.len()).map(|group| self.get(group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::item;

    #[test]
    fn captions_come_back_by_item() {
        let corpus = Corpus::new(&[item("a b", &["b", "c a"]), item("", &[]), item("c", &[""])]);
        let expected: [(&[u32], Vec<&[u32]>); 3] = [(&[1, 2], vec![&[2], &[3, 1]]), (&[], vec![]), (&[3], vec![&[]])];
        let words: Vec<_> = corpus.words().map(|(candidate, references)| (candidate, references.collect())).collect();
        assert_eq!(words, expected);
        let tokens: Vec<_> = corpus.tokens().map(|(candidate, references)| (candidate, references.collect())).collect();
        assert_eq!(tokens, expected);
        assert_eq!((corpus.len(), corpus.id("c"), corpus.id("d")), (3, Some(3), None));
        assert!(Corpus::new(&[]).is_empty());
    }

    #[test]
    fn token_with_a_space_inside_is_several_words() {
        let mut corpus = Corpus::new(&[item("a", &["b"])]);
        for token in ["b\u{a0}c", "c", "b\u{a0}c"] {
            corpus.push(token);
        }
        corpus.tokens.end_caption();
        corpus.words.end_caption();
        assert_eq!(corpus.tokens.get(0).last(), Some(&[3, 4, 3][..]));
        assert_eq!(corpus.words.get(0).last(), Some(&[2, 4, 4, 2, 4][..]));
    }
}
