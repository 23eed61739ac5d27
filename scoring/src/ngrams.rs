//! Interned captions and their n-gram counts, shared by the n-gram metrics.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use crate::Item;
use crate::tokens::Tokeniser;

/// The longest n-grams that BLEU and CIDEr-D look at.
pub(crate) const MAX_ORDER: usize = 4;

/// One to four token ids, padded with 0, which is no token's id. The fixed size keeps counts free of allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ngram([u32; MAX_ORDER]);

impl Ngram {
    fn new(ids: &[u32]) -> Self {
        let mut padded = [0; MAX_ORDER];
        padded[..ids.len()].copy_from_slice(ids);
        Self(padded)
    }

    /// Its length less one: an index into arrays of [`MAX_ORDER`].
    pub(crate) fn order(self) -> usize {
        self.0[1..].iter().filter(|&&id| id != 0).count()
    }
}

impl Hash for Ngram {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d] = self.0.map(u64::from);
        state.write_u64(a << 32 | b);
        state.write_u64(c << 32 | d);
    }
}

/// Hashes the two words of an [`Ngram`] by folded multiplication. Ids are handed out by us in order of appearance, so
/// resistance against chosen keys is not needed.
#[derive(Default)]
pub(crate) struct NgramHasher(u64);

impl Hasher for NgramHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A sparse vector over n-grams, sorted by n-gram, each at most once.
pub(crate) type Sparse<T> = Vec<(Ngram, T)>;

/// Counts the n-grams of all orders in `caption` into `counts`, whose old contents go.
pub(crate) fn count(caption: &[u32], counts: &mut Sparse<u32>) {
    counts.clear();
    for order in 1..=MAX_ORDER {
        counts.extend(caption.windows(order).map(|ids| (Ngram::new(ids), 1)));
    }
    counts.sort_unstable_by_key(|&(ngram, _)| ngram);
    counts.dedup_by(|(next, more), (ngram, count)| {
        let same = next == ngram;
        *count += *more * u32::from(same);
        same
    });
}

/// Calls `each` with the index in `left`, and both values, of every n-gram that is in both.
pub(crate) fn join<L: Copy, R: Copy>(left: &[(Ngram, L)], right: &[(Ngram, R)], mut each: impl FnMut(usize, L, R)) {
    let mut right = right.iter().peekable();
    for (index, &(ngram, l)) in left.iter().enumerate() {
        while right.next_if(|(other, _)| *other < ngram).is_some() {}
        if let Some(&(_, r)) = right.next_if(|(other, _)| *other == ngram) {
            each(index, l, r);
        }
    }
}

/// All captions of a job as token ids, in one block of memory.
pub(crate) struct Corpus {
    ids: Vec<u32>,
    /// Where each caption ends in `ids`: an item's candidate, its references, the next item's candidate, ...
    ends: Vec<usize>,
    /// The position in `ends` of each item's candidate, then the length of `ends`.
    firsts: Vec<usize>,
}

impl Corpus {
    pub(crate) fn new(items: &[Item]) -> Self {
        let mut vocabulary = HashMap::<Box<str>, u32>::new();
        let mut tokeniser = Tokeniser::default();
        let mut corpus = Self { ids: Vec::new(), ends: Vec::new(), firsts: Vec::with_capacity(items.len() + 1) };
        for item in items {
            corpus.firsts.push(corpus.ends.len());
            for caption in std::iter::once(&item.candidate).chain(&item.references) {
                // The reference's BLEU and CIDEr-D split at any white space, that inside of a token, too.
                tokeniser.each(caption, |token| {
                    corpus.ids.extend(token.split_whitespace().map(|word| {
                        vocabulary.get(word).copied().unwrap_or_else(|| {
                            let id = u32::try_from(vocabulary.len() + 1).expect("fewer than 2^32 different tokens");
                            vocabulary.insert(word.into(), id);
                            id
                        })
                    }));
                });
                corpus.ends.push(corpus.ids.len());
            }
        }
        corpus.firsts.push(corpus.ends.len());
        corpus
    }

    /// Each item's candidate and references.
    pub(crate) fn items(
        &self,
    ) -> impl ExactSizeIterator<Item = (&[u32], impl ExactSizeIterator<Item = &[u32]> + Clone)> {
        self.firsts.windows(2).map(|bounds| {
            let (first, next) = (bounds[0], bounds[1]);
            (self.caption(first), (first + 1..next).map(|index| self.caption(index)))
        })
    }

    fn caption(&self, index: usize) -> &[u32] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.ids[start..self.ends[index]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_every_order_once_per_position() {
        let mut counts = vec![(Ngram::new(&[9]), 9)];
        count(&[1, 2, 1, 2], &mut counts);
        let expected: [(&[u32], u32); 7] =
            [(&[1], 2), (&[1, 2], 2), (&[1, 2, 1], 1), (&[1, 2, 1, 2], 1), (&[2], 2), (&[2, 1], 1), (&[2, 1, 2], 1)];
        assert_eq!(counts, expected.map(|(ids, count)| (Ngram::new(ids), count)));
        let orders: Vec<_> = counts.iter().map(|(ngram, _)| ngram.order()).collect();
        assert_eq!(orders, [0, 1, 2, 3, 0, 1, 2]);
    }

    #[test]
    fn join_meets_common_ngrams_only() {
        let sparse = |ids: &[u32]| ids.iter().map(|&id| (Ngram::new(&[id]), id * 10)).collect::<Vec<_>>();
        let mut met = Vec::new();
        join(&sparse(&[1, 3, 4, 7]), &sparse(&[2, 3, 5, 7, 8]), |index, l, r| met.push((index, l, r)));
        assert_eq!(met, [(1, 30, 30), (3, 70, 70)]);
    }

    #[test]
    fn corpus_gives_captions_back_by_item() {
        let item = |candidate: &str, references: &[&str]| Item {
            candidate: candidate.into(),
            references: references.iter().map(|&text| text.into()).collect(),
        };
        let corpus = Corpus::new(&[item("a b", &["b", "c a"]), item("", &[]), item("c", &[""])]);
        let items: Vec<_> =
            corpus.items().map(|(candidate, references)| (candidate, references.collect::<Vec<_>>())).collect();
        let expected: [(&[u32], Vec<&[u32]>); 3] = [(&[1, 2], vec![&[2], &[3, 1]]), (&[], vec![]), (&[3], vec![&[]])];
        assert_eq!(items, expected);
        assert_eq!(Corpus::new(&[]).items().len(), 0);
    }

    #[test]
    fn tokens_are_split_at_white_space_inside() {
        let corpus = Corpus::new(&[Item { candidate: "1 1/2".into(), references: vec!["1/2 , 1".into()] }]);
        let captions: Vec<_> =
            corpus.items().flat_map(|(candidate, mut rest)| [candidate, rest.next().unwrap()]).collect();
        assert_eq!(captions, [[1, 2], [2, 1]]);
    }
}
