//! Curves in bounded memory: consecutive steps are aggregated into a limited number of buckets.
//!
//! When a curve outgrows its buckets, pairs of neighbouring buckets are merged, which doubles the
//! number of steps per bucket. Memory is therefore bounded for any number of steps.

use std::collections::BTreeMap;

/// The aggregate of a series of values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Aggregate {
    /// The number of values.
    pub count: u64,
    /// The sum of the values.
    sum: f64,
    /// The smallest value; 0 without values.
    pub min: f64,
    /// The largest value; 0 without values.
    pub max: f64,
}

impl Aggregate {
    /// The aggregate of a value, or of none.
    #[must_use]
    pub fn of(value: Option<f64>) -> Self {
        value.map_or_else(Self::default, |value| Self { count: 1, sum: value, min: value, max: value })
    }

    /// The mean; NaN without values.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }
}

/// The content of a bucket: the aggregate of its steps.
pub trait Merge {
    /// Merges the content of a later bucket into this one.
    fn merge(&mut self, later: &Self);
}

impl Merge for Aggregate {
    fn merge(&mut self, later: &Self) {
        if self.count == 0 {
            *self = *later;
        } else if later.count > 0 {
            self.count += later.count;
            self.sum += later.sum;
            self.min = self.min.min(later.min);
            self.max = self.max.max(later.max);
        }
    }
}

impl<K: Ord + Copy> Merge for BTreeMap<K, Aggregate> {
    fn merge(&mut self, later: &Self) {
        for (key, aggregate) in later {
            self.entry(*key).or_default().merge(aggregate);
        }
    }
}

/// A range of steps, some of which may be missing, and their content.
#[derive(Clone, Debug, PartialEq)]
pub struct Bucket<T> {
    /// The first step.
    pub first: u64,
    /// The last step.
    pub last: u64,
    /// The merged content of its steps.
    pub content: T,
}

impl<T> Bucket<T> {
    /// A bucket of one step.
    pub fn of_step(step: u64, content: T) -> Self {
        Self { first: step, last: step, content }
    }

    /// The index of this bucket's first step among ranges of `bucket_size` steps. Steps count from
    /// 1.
    fn index(&self, bucket_size: u64) -> u64 {
        self.first.saturating_sub(1) / bucket_size
    }
}

/// The buckets of a stage, in the order of their steps.
#[derive(Clone, Debug)]
pub struct Buckets<T> {
    max_buckets: usize,
    /// The maximal number of steps per bucket: a power of 2.
    bucket_size: u64,
    buckets: Vec<Bucket<T>>,
}

impl<T: Merge> Buckets<T> {
    /// Creates an empty sequence, which will have at most `max_buckets` buckets.
    #[must_use]
    pub fn new(max_buckets: usize) -> Self {
        Self { max_buckets, bucket_size: 1, buckets: Vec::new() }
    }

    /// The maximal number of steps per bucket.
    #[must_use]
    pub fn bucket_size(&self) -> u64 {
        self.bucket_size
    }

    /// All buckets.
    #[must_use]
    pub fn as_slice(&self) -> &[Bucket<T>] {
        &self.buckets
    }

    /// Adds a step after all earlier ones. Steps may be missing.
    pub fn add_step(&mut self, step: u64, content: T) {
        self.push_or_merge(Bucket::of_step(step, content));
        while self.buckets.len() > self.max_buckets {
            self.bucket_size *= 2;
            for bucket in std::mem::take(&mut self.buckets) {
                self.push_or_merge(bucket);
            }
        }
    }

    fn push_or_merge(&mut self, bucket: Bucket<T>) {
        match self.buckets.last_mut() {
            Some(last) if last.index(self.bucket_size) == bucket.index(self.bucket_size) => {
                last.last = bucket.last;
                last.content.merge(&bucket.content);
            }
            _ => self.buckets.push(bucket),
        }
    }

    /// Removes each bucket that contains a step beyond `step`, and so possibly earlier steps of
    /// that bucket. Returns the last remaining step; 0 if none remains.
    pub fn truncate(&mut self, step: u64) -> u64 {
        self.buckets.retain(|bucket| bucket.last <= step);
        self.buckets.last().map_or(0, |bucket| bucket.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_BUCKETS: usize = 400;

    fn buckets(steps: impl Iterator<Item = u64>) -> Vec<Bucket<Aggregate>> {
        let mut buckets = Buckets::new(MAX_BUCKETS);
        steps.for_each(|step| buckets.add_step(step, Aggregate::of(Some(step as f64))));
        buckets.buckets
    }

    #[test]
    fn few_steps_have_a_bucket_each() {
        let found = buckets(1..=5);
        assert_eq!(found.iter().map(|bucket| bucket.last).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert!(found.iter().all(|bucket| bucket.content.mean() == bucket.first as f64));
    }

    #[test]
    fn many_steps_are_merged_into_few_buckets_without_gaps() {
        for steps in [401, 1_000, 86_400, 1_000_001] {
            let found = buckets(1..=steps);
            assert!(
                (MAX_BUCKETS / 2..=MAX_BUCKETS).contains(&found.len()),
                "{steps} steps have {} buckets",
                found.len()
            );
            assert_eq!((found[0].first, found.last().unwrap().last), (1, steps));
            assert!(found.windows(2).all(|pair| pair[0].last + 1 == pair[1].first));
            // All buckets but the last have the same size, and aggregate all of their steps.
            let size = found[0].last;
            assert!(found[..found.len() - 1].iter().all(|bucket| bucket.content.count == size));
            assert!(found.iter().all(|bucket| bucket.content.min == bucket.first as f64));
            assert!(found.iter().all(|bucket| bucket.content.max == bucket.last as f64));
        }
    }

    #[test]
    fn steps_before_and_after_a_long_gap_are_not_merged() {
        let found = buckets((1..=1_000).chain(100_001..=101_000));
        assert!(found.len() <= MAX_BUCKETS && found.iter().any(|bucket| bucket.first == 100_001), "{found:?}");
    }
}
