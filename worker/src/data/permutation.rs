//! The order of samples: a pseudo-random permutation of 0..n that any process evaluates at any
//! index in constant time and memory. So a rank computes the samples of its share from a range of
//! indices, and no process stores or exchanges the order.

use crate::seeds;

/// The number of rounds of the Feistel network. Four make a pseudo-random permutation (Luby and
/// Rackoff 1988); the time of two more is negligible.
const ROUNDS: u64 = 6;

/// A permutation of 0..`length`.
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    length: u64,
    /// Selects the permutation.
    key: u64,
    /// The bits of each half of a value in the Feistel network, which permutes 0..4^`half_bits`.
    half_bits: u32,
}

impl Permutation {
    /// The permutation of `length` numbers with the key `key`.
    ///
    /// # Panics
    /// If `length` is 0.
    #[must_use]
    pub fn new(length: u64, key: u64) -> Self {
        assert!(length > 0, "a permutation needs at least one number");
        let bits = 64 - (length - 1).leading_zeros();
        Self { length, key, half_bits: bits.div_ceil(2).max(1) }
    }

    /// The value at `index`. The Feistel network permutes 0..n for a power n of four, so values
    /// outside 0..`length` are permuted again (cycle walking). On average the network is applied
    /// fewer than four times.
    ///
    /// # Panics
    /// If `index` is not below the length.
    #[must_use]
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.length, "{index} is not below {}", self.length);
        let mut x = index;
        loop {
            x = self.feistel_network(x);
            if x < self.length {
                return x;
            }
        }
    }

    fn feistel_network(&self, x: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (x >> self.half_bits, x & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (seeds::combine(self.key, &[round, right]) & mask));
        }
        left << self.half_bits | right
    }
}

/// The epoch and the sample at `index` of the infinite sequence that begins with epoch
/// `first_epoch` and contains each of 0..`samples` once per epoch, in an order that depends on the
/// epoch and `key`.
#[must_use]
pub fn epoch_and_sample(samples: u64, first_epoch: u64, index: u64, key: u64) -> (u64, u64) {
    let epoch = first_epoch + index / samples;
    (epoch, Permutation::new(samples, seeds::combine(key, &[epoch])).at(index % samples))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_permutation_contains_every_number_once(length in 1..3000_u64, key: u64) {
            let permutation = Permutation::new(length, key);
            let mut seen = vec![false; length as usize];
            for index in 0..length {
                let value = permutation.at(index) as usize;
                prop_assert!(!seen[value]);
                seen[value] = true;
            }
        }

        #[test]
        fn values_of_large_permutations_stay_in_range(length in 1_u64 << 40..1 << 50, key: u64, index: u64) {
            let permutation = Permutation::new(length, key);
            prop_assert!(permutation.at(index % length) < length);
        }
    }

    #[test]
    fn epochs_have_different_orders_and_contain_each_sample_once() {
        let epoch = |epoch: u64| (0..50).map(|i| epoch_and_sample(50, 0, epoch * 50 + i, 3)).collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        assert!(first.iter().all(|&(epoch, _)| epoch == 0) && second.iter().all(|&(epoch, _)| epoch == 1));
        let numbers = |samples: &[(u64, u64)]| samples.iter().map(|&(_, sample)| sample).collect::<Vec<_>>();
        assert_ne!(numbers(&first), numbers(&second));
        let mut sorted = numbers(&second);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        // A sequence that begins with a later epoch has the same order in that epoch.
        assert_eq!((0..50).map(|i| epoch_and_sample(50, 1, i, 3)).collect::<Vec<_>>(), second);
    }

    #[test]
    fn displacements_are_those_of_a_random_permutation() {
        // The mean displacement of a random permutation of n is n / 3.
        let permutation = Permutation::new(10_000, 77);
        let total: u64 = (0..10_000).map(|i| permutation.at(i).abs_diff(i)).sum();
        assert!((3_200..3_467).contains(&(total / 10_000)), "{}", total / 10_000);
    }
}
