//! How a batch is shared out among the ranks: contiguous parts that cover it, at least one sample each.
//!
//! The update does not depend on the split, because gradients are summed over samples; only the time it takes does.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

/// Shares are changed when the slowest rank would then need at least this much less time: every change costs the batches
/// that were prepared ahead.
const WORTH_IT: f64 = 0.9;

/// The part of `0..whole` that falls to `rank` of `world`: contiguous, and equal but for one.
#[must_use]
pub fn equal(whole: u32, world: u32, rank: u32) -> Range<u32> {
    let (each, more) = (whole / world, whole % world);
    let begin = rank * each + rank.min(more);
    begin..begin + each + u32::from(rank < more)
}

/// Sizes of equal shares of a batch that gives every one of `world` ranks a sample.
#[must_use]
pub fn even(batch: u32, world: usize) -> Vec<u32> {
    let share = |rank| equal(batch, world as u32, rank);
    (0..world as u32).map(|rank| share(rank).len() as u32).collect()
}

/// Sizes of shares with which ranks of these speeds (samples a second, above 0) are done soonest: one sample for each, and
/// every further one to whoever would be done with it first.
#[must_use]
pub fn proportional(batch: u32, speeds: &[f64]) -> Vec<u32> {
    let mut sizes = vec![1; speeds.len()];
    let done = |rank: usize, size: u32| Reverse((Seconds(f64::from(size) / speeds[rank]), rank));
    let mut next: BinaryHeap<_> = (0..speeds.len()).map(|rank| done(rank, 2)).collect();
    for _ in speeds.len()..batch as usize {
        let Some(Reverse((_, rank))) = next.pop() else { break };
        sizes[rank] += 1;
        next.push(done(rank, sizes[rank] + 1));
    }
    sizes
}

/// A time that can be ordered.
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

/// The sizes that ranks of these speeds should have, given those that they have.
#[must_use]
pub fn follow(sizes: &[u32], speeds: &[f64]) -> Vec<u32> {
    let better = proportional(sizes.iter().sum(), speeds);
    let seconds =
        |sizes: &[u32]| sizes.iter().zip(speeds).map(|(size, speed)| f64::from(*size) / speed).fold(0.0, f64::max);
    if seconds(&better) < WORTH_IT * seconds(sizes) { better } else { sizes.to_vec() }
}

/// The shares of these sizes, in order.
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
    fn a_rank_that_is_half_as_fast_gets_half() {
        assert_eq!(proportional(30, &[10.0, 5.0]), [20, 10]);
        assert_eq!(proportional(3, &[1e9, 1.0, 1.0]), [1, 1, 1]);
        // A tenth faster is not worth a change, twice as fast is.
        assert_eq!(follow(&[8, 8], &[10.0, 11.0]), [8, 8]);
        assert_eq!(follow(&[8, 8], &[5.0, 10.0]), [5, 11]);
        // What it has settled on it keeps.
        assert_eq!(follow(&[5, 11], &[5.0, 10.0]), [5, 11]);
    }

    proptest! {
        #[test]
        fn every_sample_of_a_batch_falls_to_one_rank(batch in 1..500_u32, world in 1..40_u32) {
            let mut next = 0;
            for rank in 0..world {
                let share = equal(batch, world, rank);
                prop_assert_eq!(share.start, next);
                prop_assert!(share.len() as u32 - batch / world <= 1);
                next = share.end;
            }
            prop_assert_eq!(next, batch);
        }

        #[test]
        fn proportional_shares_cover_the_batch_and_leave_nobody_out(
            speeds in prop::collection::vec(0.01..1e4_f64, 1..40), more in 0..400_u32,
        ) {
            let batch = speeds.len() as u32 + more;
            let sizes = proportional(batch, &speeds);
            prop_assert_eq!(sizes.iter().sum::<u32>(), batch);
            prop_assert!(sizes.iter().all(|size| *size >= 1));
            // Nobody would be done sooner if the last to finish gave a sample away.
            let seconds = |size: u32, speed: &f64| f64::from(size) / speed;
            let shared = || sizes.iter().zip(&speeds).filter(|(size, _)| **size > 1);
            let last = shared().map(|(size, speed)| seconds(*size, speed)).fold(0.0, f64::max);
            let taken = sizes.iter().zip(&speeds).map(|(size, speed)| seconds(*size + 1, speed));
            prop_assert!(taken.fold(f64::INFINITY, f64::min) >= last * (1.0 - 1e-9));
            prop_assert_eq!(ranges(&sizes).last().map(|share| share.end), Some(batch));
        }
    }
}
