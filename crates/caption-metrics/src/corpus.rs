//! Captions as token ids, tokenized once for BLEU, ROUGE-L, CIDEr-D and the metrics of fluency
//! (repetition, incorrect endings, diversity and length).

use std::collections::HashMap;

use crate::Item;
use crate::ptb_tokenizer::PtbTokenizer;

/// Items as token ids: what BLEU, ROUGE-L, CIDEr-D and fluency are computed from.
/// [`CiderReward`](crate::cider::CiderReward) tokenizes by itself.
///
/// A token of [`crate::ptb_tokenizer`] may contain a no-break space. pycocoevalcap's ROUGE-L splits
/// captions at plain spaces only and counts it as one token; BLEU and CIDEr split captions at any
/// white space and count it as several words. The corpus has both versions.
pub struct Corpus {
    /// Captions as tokens.
    tokens: CaptionGroups,
    /// Captions as words: tokens split at white space.
    words: CaptionGroups,
    /// The ids of tokens and of words.
    vocabulary: Vocabulary,
}

impl Corpus {
    /// Tokenizes all captions of `items`.
    #[must_use]
    pub fn new(items: &[Item]) -> Self {
        let mut tokenizer = PtbTokenizer::default();
        let mut corpus = Self {
            tokens: CaptionGroups::default(),
            words: CaptionGroups::default(),
            vocabulary: Vocabulary::default(),
        };
        for item in items {
            corpus.tokens.begin_group();
            corpus.words.begin_group();
            for caption in std::iter::once(&item.candidate).chain(&item.references) {
                tokenizer.for_each_token(caption, |token| corpus.push(token));
                corpus.tokens.end_caption();
                corpus.words.end_caption();
            }
        }
        corpus
    }

    /// Adds a token to the current caption.
    fn push(&mut self, token: &str) {
        let id = self.vocabulary.intern(token);
        self.tokens.push(id);
        if token.contains(char::is_whitespace) {
            token.split_whitespace().for_each(|word| self.words.push(self.vocabulary.intern(word)));
        } else {
            self.words.push(id);
        }
    }

    /// The number of items.
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
        self.tokens.iter().map(split_candidate)
    }

    /// Each item's candidate and references, as words.
    pub(crate) fn words(
        &self,
    ) -> impl ExactSizeIterator<Item = (&[u32], impl ExactSizeIterator<Item = &[u32]> + Clone)> {
        self.words.iter().map(split_candidate)
    }

    /// The id of a word; none if no caption contains the word.
    pub(crate) fn id(&self, word: &str) -> Option<u32> {
        self.vocabulary.get(word)
    }
}

/// Splits the captions of an item into the candidate, which is the first, and the references.
fn split_candidate<'a, I: Iterator<Item = &'a [u32]>>(mut captions: I) -> (&'a [u32], I) {
    (captions.next().unwrap_or_default(), captions)
}

/// Assigns ids to tokens in order of appearance, from 1; 0 is never an id.
#[derive(Default)]
pub(crate) struct Vocabulary(HashMap<Box<str>, u32>);

impl Vocabulary {
    pub(crate) fn get(&self, token: &str) -> Option<u32> {
        self.0.get(token).copied()
    }

    /// The id of `token`; a new id for a new token.
    pub(crate) fn intern(&mut self, token: &str) -> u32 {
        self.get(token).unwrap_or_else(|| {
            let id = self.last_id() + 1;
            self.0.insert(token.into(), id);
            id
        })
    }

    /// The last assigned id; 0 if there is none.
    pub(crate) fn last_id(&self) -> u32 {
        u32::try_from(self.0.len()).expect("fewer than 2^32 different tokens")
    }
}

/// Groups of captions as token ids, in one block of memory. A group has the captions of an item, or
/// the references of an image.
#[derive(Default)]
pub(crate) struct CaptionGroups {
    /// The tokens of all captions.
    ids: Vec<u32>,
    /// The end of each caption in `ids`.
    caption_ends: Vec<usize>,
    /// The index in `caption_ends` of each group's first caption.
    group_starts: Vec<usize>,
}

impl CaptionGroups {
    /// Begins a group.
    pub(crate) fn begin_group(&mut self) {
        self.group_starts.push(self.caption_ends.len());
    }

    /// Adds an id to the current caption.
    pub(crate) fn push(&mut self, id: u32) {
        self.ids.push(id);
    }

    /// Ends the current caption, which belongs to the last group.
    pub(crate) fn end_caption(&mut self) {
        self.caption_ends.push(self.ids.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.group_starts.len()
    }

    /// The captions of a group.
    pub(crate) fn get(&self, group: usize) -> impl ExactSizeIterator<Item = &[u32]> + Clone {
        let next = self.group_starts.get(group + 1).copied().unwrap_or(self.caption_ends.len());
        (self.group_starts[group]..next).map(|index| {
            let start = index.checked_sub(1).map_or(0, |previous| self.caption_ends[previous]);
            &self.ids[start..self.caption_ends[index]]
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
    fn captions_are_grouped_by_item() {
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
    fn a_token_with_an_inner_space_is_several_words() {
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
