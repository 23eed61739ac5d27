//! Counts of n-grams, shared by the n-gram metrics.

use std::hash::{Hash, Hasher};

/// The maximal number of tokens of the n-grams of BLEU and CIDEr-D.
pub(crate) const MAX_ORDER: usize = 4;

/// An n-gram of one to four token ids. They are packed into one number, 32 bits each from the top,
/// and padded with 0, which is not the id of a token. A single number is fast to compare, which
/// matters because counting spends most of its time on sorting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ngram(u128);

impl Ngram {
    fn new(ids: &[u32]) -> Self {
        let packed = ids.iter().fold(0, |packed, &id| packed << u32::BITS | u128::from(id));
        Self(packed << (u32::BITS as usize * (MAX_ORDER - ids.len())))
    }

    /// The number of tokens minus one: an index into arrays of length [`MAX_ORDER`].
    pub(crate) fn order(self) -> usize {
        MAX_ORDER - 1 - (self.0.trailing_zeros() / u32::BITS) as usize
    }
}

impl Hash for Ngram {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64((self.0 >> u64::BITS) as u64);
        state.write_u64(self.0 as u64);
    }
}

/// Hashes the two 64-bit halves of an [`Ngram`] by folded multiplication. Ids are assigned in order
/// of appearance, so captions cannot be chosen to cause collisions, and a simple hash is enough.
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

/// A sparse vector over n-grams, sorted by n-gram, without duplicates.
pub(crate) type SparseVector<T> = Vec<(Ngram, T)>;

/// The n-grams of all orders in `caption`.
pub(crate) fn all_orders(caption: &[u32]) -> impl Iterator<Item = Ngram> {
    (1..=MAX_ORDER).flat_map(|length| caption.windows(length).map(Ngram::new))
}

/// Counts the n-grams of all orders in `caption`; replaces the contents of `counts`.
pub(crate) fn count(caption: &[u32], counts: &mut SparseVector<u32>) {
    counts.clear();
    counts.extend(all_orders(caption).map(|ngram| (ngram, 1)));
    counts.sort_unstable_by_key(|&(ngram, _)| ngram);
    counts.dedup_by(|(next, more), (ngram, count)| {
        let is_same = next == ngram;
        *count += *more * u32::from(is_same);
        is_same
    });
}

/// Calls `each` for every n-gram that is in both vectors, with its index in `left` and both values.
pub(crate) fn for_each_common<L: Copy, R: Copy>(
    left: &[(Ngram, L)],
    right: &[(Ngram, R)],
    mut each: impl FnMut(usize, L, R),
) {
    let mut right = right.iter().peekable();
    for (index, &(ngram, left_value)) in left.iter().enumerate() {
        while right.next_if(|(other, _)| *other < ngram).is_some() {}
        if let Some(&(_, right_value)) = right.next_if(|(other, _)| *other == ngram) {
            each(index, left_value, right_value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ngrams_of_all_orders_are_counted() {
        let mut counts = vec![(Ngram::new(&[9]), 9)];
        count(&[1, 2, 1, 2], &mut counts);
        let expected: [(&[u32], u32); 7] =
            [(&[1], 2), (&[1, 2], 2), (&[1, 2, 1], 1), (&[1, 2, 1, 2], 1), (&[2], 2), (&[2, 1], 1), (&[2, 1, 2], 1)];
        assert_eq!(counts, expected.map(|(ids, count)| (Ngram::new(ids), count)));
        let orders: Vec<_> = counts.iter().map(|(ngram, _)| ngram.order()).collect();
        assert_eq!(orders, [0, 1, 2, 3, 0, 1, 2]);
    }

    #[test]
    fn only_common_ngrams_are_visited() {
        let sparse = |ids: &[u32]| ids.iter().map(|&id| (Ngram::new(&[id]), id * 10)).collect::<Vec<_>>();
        let mut joined = Vec::new();
        for_each_common(&sparse(&[1, 3, 4, 7]), &sparse(&[2, 3, 5, 7, 8]), |index, left_value, right_value| {
            joined.push((index, left_value, right_value));
        });
        assert_eq!(joined, [(1, 30, 30), (3, 70, 70)]);
    }
}
