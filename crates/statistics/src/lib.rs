//! Mergeable summaries of distributions: workers report them for their shares of a step, the
//! coordinator merges them for the whole step.
//!
//! Count, mean and variance merge exactly (Chan, Golub and LeVeque 1979); quantiles come from a DDSketch (Masson, Rim and
//! Lee, VLDB 2019) whose answers are within 1% of the true value. The number of buckets is bounded, whatever a peer
//! sends.

use std::collections::BTreeMap;

pub mod names;

/// The relative accuracy of quantiles.
const ACCURACY: f64 = 0.01;
/// Values nearer to zero count as zero.
const MIN_MAGNITUDE: f64 = 1e-9;
/// Values farther from zero are clamped to this: their squares can still be summed.
const MAX_MAGNITUDE: f64 = 1e100;
/// Buckets beyond these are clamped, so a sketch never holds more than 2 x 2,000 of them; covers 1e-9 to beyond 1e9.
const BUCKETS: std::ops::RangeInclusive<i32> = -1040..=1040;

/// Maximal number of values in a summary from a peer: more than any step has, and far from
/// overflow when merged.
const MAX_COUNT: u64 = 1 << 40;

/// A distribution: count, moments, extremes and a quantile sketch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary(Parts);

/// The parts of a summary, as they are sent to a peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// The number of values.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// The sum of squared differences from the mean.
    pub m2: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
    /// The number of positive values by bucket of the sketch.
    pub positive: BTreeMap<i32, u64>,
    /// The number of negative values by bucket of their magnitude.
    pub negative: BTreeMap<i32, u64>,
    /// The number of values that count as zero.
    pub zero: u64,
}

fn gamma() -> f64 {
    (1.0 + ACCURACY) / (1.0 - ACCURACY)
}

fn bucket(magnitude: f64) -> i32 {
    // A float-to-int cast saturates, so infinite magnitudes land in the last bucket.
    let index = (magnitude.ln() / gamma().ln()).ceil() as i32;
    index.clamp(*BUCKETS.start(), *BUCKETS.end())
}

/// The representative value of a bucket: its relative distance to both ends is the accuracy.
fn value(bucket: i32) -> f64 {
    2.0 * gamma().powi(bucket) / (gamma() + 1.0)
}

impl Summary {
    /// The summary of these values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut summary = Self::default();
        for value in values {
            summary.add(value);
        }
        summary
    }

    /// Adds a value. Ignores values that are not finite.
    pub fn add(&mut self, x: f64) {
        if !x.is_finite() {
            return;
        }
        let x = x.clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE);
        let mut one = Parts { count: 1, mean: x, m2: 0.0, min: x, max: x, ..Parts::default() };
        match x.abs() {
            magnitude if magnitude < MIN_MAGNITUDE => one.zero = 1,
            magnitude if x > 0.0 => _ = one.positive.insert(bucket(magnitude), 1),
            magnitude => _ = one.negative.insert(bucket(magnitude), 1),
        }
        self.merge(&Self(one));
    }

    /// Merges another summary into this one.
    pub fn merge(&mut self, other: &Self) {
        let (Self(own), Self(other)) = (self, other);
        if other.count == 0 {
            return;
        }
        if own.count == 0 {
            other.clone_into(own);
            return;
        }
        let (n, m) = (own.count as f64, other.count as f64);
        let delta = other.mean - own.mean;
        own.count += other.count;
        own.mean += delta * m / (n + m);
        own.m2 += other.m2 + delta * delta * n * m / (n + m);
        own.min = own.min.min(other.min);
        own.max = own.max.max(other.max);
        own.zero += other.zero;
        for (mine, theirs) in [(&mut own.positive, &other.positive), (&mut own.negative, &other.negative)] {
            for (&bucket, &count) in theirs {
                *mine.entry(bucket).or_default() += count;
            }
        }
    }

    /// The number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.count
    }

    /// The mean; 0 if there are no values.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.0.mean
    }

    /// The standard deviation (of the population).
    #[must_use]
    pub fn deviation(&self) -> f64 {
        if self.0.count == 0 { 0.0 } else { (self.0.m2 / self.0.count as f64).max(0.0).sqrt() }
    }

    /// The `q` quantile for `q` in 0..=1, within 1%; none if there are no values.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.0.count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * (self.0.count - 1) as f64) as u64;
        let below = self.0.negative.iter().rev().map(|(&b, &n)| (-value(b), n));
        let above = self.0.positive.iter().map(|(&b, &n)| (value(b), n));
        let mut seen = 0;
        for (value, count) in below.chain([(0.0, self.0.zero)]).chain(above) {
            seen += count;
            if seen > rank {
                return Some(value.clamp(self.0.min, self.0.max));
            }
        }
        Some(self.0.max)
    }
}

impl From<Summary> for Parts {
    fn from(summary: Summary) -> Self {
        summary.0
    }
}

/// Parts that belong to no summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("summary whose count, moments and buckets are inconsistent")]
pub struct InconsistentParts;

impl TryFrom<Parts> for Summary {
    type Error = InconsistentParts;

    fn try_from(parts: Parts) -> Result<Self, InconsistentParts> {
        let buckets = || parts.positive.iter().chain(&parts.negative);
        let total = buckets().map(|(_, &n)| n).chain([parts.zero]).fold(0_u64, u64::saturating_add);
        let is_finite = [parts.mean, parts.m2, parts.min, parts.max].iter().all(|x| x.is_finite());
        let is_known = buckets().all(|(bucket, _)| BUCKETS.contains(bucket));
        let is_consistent = total == parts.count && total <= MAX_COUNT && parts.min <= parts.max && parts.m2 >= 0.0;
        if is_finite && is_known && is_consistent { Ok(Self(parts)) } else { Err(InconsistentParts) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    proptest! {
        #[test]
        fn merging_parts_is_summarising_the_whole(
            a in prop::collection::vec(-1e3..1e3_f64, 0..40),
            b in prop::collection::vec(-1e3..1e3_f64, 0..40),
        ) {
            let mut merged = Summary::of(a.iter().copied());
            merged.merge(&Summary::of(b.iter().copied()));
            let whole: Vec<f64> = a.into_iter().chain(b).collect();
            let n = whole.len() as f64;
            prop_assert_eq!(merged.count(), whole.len() as u64);
            if !whole.is_empty() {
                let mean = whole.iter().sum::<f64>() / n;
                let variance = whole.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                prop_assert!(close(merged.mean(), mean));
                prop_assert!(close(merged.deviation().powi(2), variance));
            }
        }

        #[test]
        fn quantiles_are_within_one_percent(
            mut values in prop::collection::vec(-1e3..1e3_f64, 1..80), q in 0.0..=1.0_f64,
        ) {
            let estimate = Summary::of(values.iter().copied()).quantile(q).unwrap();
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64) as usize];
            prop_assert!((estimate - exact).abs() <= ACCURACY * exact.abs() + MIN_MAGNITUDE, "{} for {}", estimate, exact);
        }

        #[test]
        fn parts_make_the_same_summary(values in prop::collection::vec(-1e12..1e12_f64, 0..40)) {
            let summary = Summary::of(values);
            prop_assert_eq!(Summary::try_from(Parts::from(summary.clone())), Ok(summary));
        }
    }

    #[test]
    fn summaries_of_extreme_values_have_consistent_parts() {
        let extremes = [f64::MAX, -f64::MAX, f64::MIN_POSITIVE, -0.0, f64::from(f32::MAX), 1e-300, 1e160, f64::NAN];
        let summary = Summary::of(extremes.into_iter().chain([f64::INFINITY, f64::NEG_INFINITY]));
        let mut merged = summary.clone();
        (0..20).for_each(|_| merged.merge(&merged.clone()));
        for summary in [summary, merged] {
            assert_eq!(Summary::try_from(Parts::from(summary.clone())), Ok(summary));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let summary = Summary::of([1.0, f64::NAN, f64::INFINITY, 3.0]);
        assert_eq!((summary.count(), summary.mean()), (2, 2.0));
    }

    #[test]
    fn a_peer_cannot_send_parts_that_do_not_belong_together() {
        let good = Parts::from(Summary::of([1.0, -2.0, 0.0]));
        let broken = [
            Parts { count: 4, ..good.clone() },
            Parts { mean: f64::NAN, ..good.clone() },
            Parts { positive: [(i32::MAX, 1)].into(), ..good.clone() },
            Parts { positive: [(0, u64::MAX), (1, u64::MAX)].into(), ..good },
        ];
        for parts in broken {
            assert_eq!(Summary::try_from(parts), Err(InconsistentParts));
        }
    }
}
