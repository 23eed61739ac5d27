//! The order of samples: a pseudo-random permutation of 0..n that any process evaluates at any
//! index in constant time and memory. A shard is therefore a range of indices, however large the
//! data set.

use crate::seeds;

/// Rounds of the Feistel network; four make a pseudo-random permutation (Luby and Rackoff 1988), two more cost nothing here.
const ROUNDS: u64 = 6;

/// A permutation of 0..`length`.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    length: u64,
    key: u64,
    half_bits: u32,
}

impl Permutation {
    /// The permutation of `length` numbers with the key `key`.
    ///
    /// # Panics
    /// If `length` is 0.
    #[must_use]
    pub fn new(length: u64, key: u64) -> Self {
        assert!(length > 0, "there is no permutation of nothing");
        let bits = 64 - (length - 1).leading_zeros();
        Self { length, key, half_bits: bits.div_ceil(2).max(1) }
    }

    /// The image of `index`. The Feistel network permutes powers of four, so results outside
    /// 0..`length` are permuted again (cycle walking), fewer than four times on average.
    ///
    /// # Panics
    /// If `index` is not below the length.
    #[must_use]
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.length, "{index} is not below {}", self.length);
        let mut x = index;
        loop {
            x = self.network(x);
            if x < self.length {
                return x;
            }
        }
    }

    fn network(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (seeds::combine(self.key, &[round, right]) & mask));
        }
        left << self.half_bits | right
    }
}

/// Sample number `index` of the infinite sequence that goes through 0..`samples` once per epoch, in
/// another order each time. Returns the epoch and the sample. The sequence begins with epoch
/// `first`.
#[must_use]
pub fn sample(samples: u64, first: u64, index: u64, key: u64) -> (u64, u64) {
    let epoch = first + index / samples;
    (epoch, Permutation::new(samples, seeds::combine(key, &[epoch])).at(index % samples))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_number_comes_once(length in 1..3000_u64, key: u64) {
            let permutation = Permutation::new(length, key);
            let mut seen = vec![false; length as usize];
            for index in 0..length {
                let place = permutation.at(index) as usize;
                prop_assert!(!seen[place]);
                seen[place] = true;
            }
        }

        #[test]
        fn huge_sets_stay_in_range(length in 1_u64 << 40..1 << 50, key: u64, index: u64) {
            let permutation = Permutation::new(length, key);
            prop_assert!(permutation.at(index % length) < length);
        }
    }

    #[test]
    fn epochs_differ_and_each_is_whole() {
        let epoch = |epoch: u64| (0..50).map(|i| sample(50, 0, epoch * 50 + i, 3)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        assert!(first.iter().all(|&(epoch, _)| epoch == 0) && second.iter().all(|&(epoch, _)| epoch == 1));
        let numbers = |samples: &[(u64, u64)]| samples.iter().map(|&(_, sample)| sample).collect::<Vec<_>>();
        assert_ne!(numbers(&first), numbers(&second));
        let mut sorted = numbers(&second);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        // A sequence that begins with a later epoch continues in the same way.
        assert_eq!((0..50).map(|i| sample(50, 1, i, 3)).collect::<Vec<_>>(), second);
    }

    #[test]
    fn places_are_spread_evenly() {
        // The mean displacement of a random permutation of n is n / 3.
        let permutation = Permutation::new(10_000, 77);
        let total: u64 = (0..10_000).map(|i| permutation.at(i).abs_diff(i)).sum();
        assert!((3_200..3_467).contains(&(total / 10_000)), "{}", total / 10_000);
    }
}
