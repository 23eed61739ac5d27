//! Division of a batch among ranks: contiguous shares that cover it, of at least one sample each.
//!
//! The division does not change the update, because gradients are summed over samples. It changes
//! only the time of a step.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;

/// Shares change only if the slowest rank would then need at most this fraction of its time: each
/// change discards the batches that were prefetched.
const WORTH_IT: f64 = 0.9;

/// The part of `0..whole` for `rank` of `world`: contiguous; sizes differ by at most one.
#[must_use]
pub fn equal(whole: u32, world: u32, rank: u32) -> Range<u32> {
    let (each, more) = (whole / world, whole % world);
    let begin = rank * each + rank.min(more);
    begin..begin + each + u32::from(rank < more)
}

/// The sizes of equal shares of a batch. Each of `world` ranks gets at least one sample if the
/// batch has as many.
#[must_use]
pub fn even(batch: u32, world: usize) -> Vec<u32> {
    let share = |rank| equal(batch, world as u32, rank);
    (0..world as u32).map(|rank| share(rank).len() as u32).collect()
}

/// The sizes of shares with which ranks of these speeds (samples per second, above 0) finish
/// soonest: one sample for each, and each further one to the rank that would finish it first.
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

/// A time in seconds with a total order.
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

/// The new sizes for ranks of these speeds, given the present sizes. Unchanged unless the gain is
/// worth it.
#[must_use]
pub fn follow(sizes: &[u32], speeds: &[f64]) -> Vec<u32> {
    let better = proportional(sizes.iter().sum(), speeds);
    let seconds =
        |sizes: &[u32]| sizes.iter().zip(speeds).map(|(size, speed)| f64::from(*size) / speed).fold(0.0, f64::max);
    if seconds(&better) < WORTH_IT * seconds(sizes) { better } else { sizes.to_vec() }
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
    fn a_rank_that_is_half_as_fast_gets_half() {
        assert_eq!(proportional(30, &[10.0, 5.0]), [20, 10]);
        assert_eq!(proportional(3, &[1e9, 1.0, 1.0]), [1, 1, 1]);
        // A rank that is a tenth faster is not worth a change; one that is twice as fast is.
        assert_eq!(follow(&[8, 8], &[10.0, 11.0]), [8, 8]);
        assert_eq!(follow(&[8, 8], &[5.0, 10.0]), [5, 11]);
        // A second call changes nothing.
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
            // The step would not be faster if the last rank to finish gave a sample to another.
            let seconds = |size: u32, speed: &f64| f64::from(size) / speed;
            let shared = || sizes.iter().zip(&speeds).filter(|(size, _)| **size > 1);
            let last = shared().map(|(size, speed)| seconds(*size, speed)).fold(0.0, f64::max);
            let taken = sizes.iter().zip(&speeds).map(|(size, speed)| seconds(*size + 1, speed));
            prop_assert!(taken.fold(f64::INFINITY, f64::min) >= last * (1.0 - 1e-9));
            prop_assert_eq!(ranges(&sizes).last().map(|share| share.end), Some(batch));
        }
    }
}
