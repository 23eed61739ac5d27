//! Division of a batch among ranks into shares: contiguous ranges of at least one sample each,
//! which together are the batch.
//!
//! Except for rounding, the division does not change the update, because gradients are summed over
//! samples. It changes the duration of a step.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

use crate::types::Rank;

/// Shares change only if the duration of a step is then at most this fraction of the present one.
/// Each change has a cost: the workers discard the samples that they have prefetched.
const MAX_DURATION_RATIO: f64 = 0.9;

/// The range of `0..total` that is the share of a rank, if the sizes of all shares differ by at
/// most one.
#[must_use]
pub fn equal_share(total: u32, world_size: u32, Rank(rank): Rank) -> Range<u32> {
    let (size, remainder) = (total / world_size, total % world_size);
    let begin = rank * size + rank.min(remainder);
    begin..begin + size + u32::from(rank < remainder)
}

/// The sizes of equal shares of a batch. Each rank gets at least one sample if the batch has that
/// many.
#[must_use]
pub fn equal_sizes(batch: u32, world_size: usize) -> Vec<u32> {
    let world_size = world_size as u32;
    (0..world_size).map(|rank| equal_share(batch, world_size, Rank(rank)).len() as u32).collect()
}

/// The sizes of shares for ranks with these speeds (samples per second, above 0) that minimize the
/// duration of a step: one sample for each rank; each further sample goes to the rank that would
/// finish first with it.
#[must_use]
pub fn proportional_sizes(batch: u32, speeds: &[f64]) -> Vec<u32> {
    let mut sizes = vec![1; speeds.len()];
    let finish_time = |rank: usize, size: u32| Reverse((Seconds(f64::from(size) / speeds[rank]), rank));
    let mut next: BinaryHeap<_> = (0..speeds.len()).map(|rank| finish_time(rank, 2)).collect();
    for _ in speeds.len()..batch as usize {
        let Some(Reverse((_, rank))) = next.pop() else { break };
        sizes[rank] += 1;
        next.push(finish_time(rank, sizes[rank] + 1));
    }
    sizes
}

/// A duration in seconds with a total order.
#[derive(PartialEq)]
struct Seconds(f64);

impl Eq for Seconds {}

impl PartialOrd for Seconds {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Seconds {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// The new sizes of the shares of ranks with these speeds. These are the present `sizes`, unless
/// proportional sizes reduce the duration of a step to [`MAX_DURATION_RATIO`] of the present one.
#[must_use]
pub fn rebalance(sizes: &[u32], speeds: &[f64]) -> Vec<u32> {
    let proportional = proportional_sizes(sizes.iter().sum(), speeds);
    let seconds =
        |sizes: &[u32]| sizes.iter().zip(speeds).map(|(size, speed)| f64::from(*size) / speed).fold(0.0, f64::max);
    if seconds(&proportional) < MAX_DURATION_RATIO * seconds(sizes) { proportional } else { sizes.to_vec() }
}

/// The shares of these sizes as ranges of samples, in order.
pub fn ranges(sizes: &[u32]) -> impl Iterator<Item = Range<u32>> {
    sizes.iter().scan(0, |begin, size| {
        let share = *begin..*begin + size;
        *begin = share.end;
        Some(share)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rank_with_half_the_speed_gets_half_the_samples() {
        assert_eq!(proportional_sizes(30, &[10.0, 5.0]), [20, 10]);
        assert_eq!(proportional_sizes(3, &[1e9, 1.0, 1.0]), [1, 1, 1]);
        // Sizes do not change if one rank is a tenth faster than the other. They change if it is
        // twice as fast.
        assert_eq!(rebalance(&[8, 8], &[10.0, 11.0]), [8, 8]);
        assert_eq!(rebalance(&[8, 8], &[5.0, 10.0]), [5, 11]);
        // A second call changes nothing.
        assert_eq!(rebalance(&[5, 11], &[5.0, 10.0]), [5, 11]);
    }

    proptest! {
        #[test]
        fn each_sample_of_a_batch_is_in_the_share_of_one_rank(batch in 1..500_u32, world_size in 1..40_u32) {
            let mut next = 0;
            for rank in (0..world_size).map(Rank) {
                let share = equal_share(batch, world_size, rank);
                prop_assert_eq!(share.start, next);
                prop_assert!(share.len() as u32 - batch / world_size <= 1);
                next = share.end;
            }
            prop_assert_eq!(next, batch);
        }

        #[test]
        fn proportional_shares_cover_the_batch_and_have_a_sample_each(
            speeds in prop::collection::vec(0.01..1e4_f64, 1..40), further_samples in 0..400_u32,
        ) {
            let batch = speeds.len() as u32 + further_samples;
            let sizes = proportional_sizes(batch, &speeds);
            prop_assert_eq!(sizes.iter().sum::<u32>(), batch);
            prop_assert!(sizes.iter().all(|size| *size >= 1));
            // The step would not be faster if the rank that finishes last gave a sample to another
            // rank.
            let seconds = |size: u32, speed: &f64| f64::from(size) / speed;
            let with_several_samples = sizes.iter().zip(&speeds).filter(|(size, _)| **size > 1);
            let last_finish = with_several_samples.map(|(size, speed)| seconds(*size, speed)).fold(0.0, f64::max);
            let with_one_more = sizes.iter().zip(&speeds).map(|(size, speed)| seconds(*size + 1, speed));
            prop_assert!(with_one_more.fold(f64::INFINITY, f64::min) >= last_finish * (1.0 - 1e-9));
            prop_assert_eq!(ranges(&sizes).last().map(|share| share.end), Some(batch));
        }
    }
}
