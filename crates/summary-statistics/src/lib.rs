//! Mergeable summaries of distributions.
//!
//! Workers report a summary of their share of a step; the coordinator merges these into the summary
//! of the whole step. Count, mean and variance merge exactly (Chan, Golub and LeVeque 1979).
//! Quantiles come from a DDSketch (Masson, Rim and Lee, VLDB 2019), which estimates them within 1%
//! for magnitudes from 1e-9 to 1e9. The number of buckets is bounded, also in a summary from a
//! peer.

use std::collections::BTreeMap;

/// The relative accuracy of quantiles.
const RELATIVE_ACCURACY: f64 = 0.01;
/// Values nearer to zero count as zero.
const MIN_MAGNITUDE: f64 = 1e-9;
/// Values farther from zero are clamped to this magnitude, so that the sum of their squares stays
/// finite.
const MAX_MAGNITUDE: f64 = 1e100;
/// The range of bucket indices; indices outside are clamped. It covers magnitudes from 1e-9 to more
/// than 1e9, and bounds a sketch to about 2,000 buckets per sign.
const BUCKET_RANGE: std::ops::RangeInclusive<i32> = -1040..=1040;

/// Maximal number of values in a summary from a peer. It is more than any step has, and sums of
/// millions of such counts do not overflow.
const MAX_COUNT: u64 = 1 << 40;

/// A distribution: count, moments, extremes and a quantile sketch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary(SummaryParts);

/// The fields of a [`Summary`], for conversion to and from protocol messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SummaryParts {
    /// The number of values.
    pub count: u64,
    /// The mean of the values.
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

/// The ratio of the upper to the lower bound of a bucket.
fn gamma() -> f64 {
    (1.0 + RELATIVE_ACCURACY) / (1.0 - RELATIVE_ACCURACY)
}

/// The index of the bucket of a magnitude.
fn bucket_of(magnitude: f64) -> i32 {
    let index = (magnitude.ln() / gamma().ln()).ceil() as i32;
    index.clamp(*BUCKET_RANGE.start(), *BUCKET_RANGE.end())
}

/// The representative value of a bucket. Its relative distance to both bounds of the bucket is
/// [`RELATIVE_ACCURACY`].
fn bucket_value(bucket: i32) -> f64 {
    2.0 * gamma().powi(bucket) / (gamma() + 1.0)
}

impl Summary {
    /// Summarises `values`.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut summary = Self::default();
        for value in values {
            summary.add(value);
        }
        summary
    }

    /// Adds a value. Ignores values that are not finite.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() {
            return;
        }
        let x = value.clamp(-MAX_MAGNITUDE, MAX_MAGNITUDE);
        let mut single = SummaryParts { count: 1, mean: x, m2: 0.0, min: x, max: x, ..SummaryParts::default() };
        match x.abs() {
            magnitude if magnitude < MIN_MAGNITUDE => single.zero = 1,
            magnitude if x > 0.0 => _ = single.positive.insert(bucket_of(magnitude), 1),
            magnitude => _ = single.negative.insert(bucket_of(magnitude), 1),
        }
        self.merge(&Self(single));
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
        let (own_count, other_count) = (own.count as f64, other.count as f64);
        let delta = other.mean - own.mean;
        own.count += other.count;
        own.mean += delta * other_count / (own_count + other_count);
        own.m2 += other.m2 + delta * delta * own_count * other_count / (own_count + other_count);
        own.min = own.min.min(other.min);
        own.max = own.max.max(other.max);
        own.zero += other.zero;
        for (own_buckets, other_buckets) in [(&mut own.positive, &other.positive), (&mut own.negative, &other.negative)]
        {
            for (&bucket, &count) in other_buckets {
                *own_buckets.entry(bucket).or_default() += count;
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

    /// The standard deviation (of the population); 0 if there are no values.
    #[must_use]
    pub fn standard_deviation(&self) -> f64 {
        if self.0.count == 0 { 0.0 } else { (self.0.m2 / self.0.count as f64).max(0.0).sqrt() }
    }

    /// The `q` quantile for `q` in 0..=1, within 1% for magnitudes from 1e-9 to 1e9; none if there
    /// are no values.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.0.count == 0 {
            return None;
        }
        let index = (q.clamp(0.0, 1.0) * (self.0.count - 1) as f64) as u64;
        let below = self.0.negative.iter().rev().map(|(&b, &n)| (-bucket_value(b), n));
        let above = self.0.positive.iter().map(|(&b, &n)| (bucket_value(b), n));
        let mut cumulative_count = 0;
        for (value, count) in below.chain([(0.0, self.0.zero)]).chain(above) {
            cumulative_count += count;
            if cumulative_count > index {
                return Some(value.clamp(self.0.min, self.0.max));
            }
        }
        Some(self.0.max)
    }
}

impl From<Summary> for SummaryParts {
    fn from(summary: Summary) -> Self {
        summary.0
    }
}

/// The error of converting [`SummaryParts`] that contradict each other, are not finite, or exceed a
/// limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("summary whose count, moments and buckets are inconsistent")]
pub struct InvalidSummaryError;

impl TryFrom<SummaryParts> for Summary {
    type Error = InvalidSummaryError;

    fn try_from(parts: SummaryParts) -> Result<Self, InvalidSummaryError> {
        let buckets = || parts.positive.iter().chain(&parts.negative);
        let total = buckets().map(|(_, &n)| n).chain([parts.zero]).fold(0_u64, u64::saturating_add);
        let is_finite = [parts.mean, parts.m2, parts.min, parts.max].iter().all(|x| x.is_finite());
        let are_buckets_in_range = buckets().all(|(bucket, _)| BUCKET_RANGE.contains(bucket));
        let is_consistent = total == parts.count && total <= MAX_COUNT && parts.min <= parts.max && parts.m2 >= 0.0;
        if is_finite && are_buckets_in_range && is_consistent { Ok(Self(parts)) } else { Err(InvalidSummaryError) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn is_close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    proptest! {
        #[test]
        fn merged_summaries_equal_the_summary_of_all_values(
            a in prop::collection::vec(-1e3..1e3_f64, 0..40),
            b in prop::collection::vec(-1e3..1e3_f64, 0..40),
        ) {
            let mut merged = Summary::of(a.iter().copied());
            merged.merge(&Summary::of(b.iter().copied()));
            let all: Vec<f64> = a.into_iter().chain(b).collect();
            let n = all.len() as f64;
            prop_assert_eq!(merged.count(), all.len() as u64);
            if !all.is_empty() {
                let mean = all.iter().sum::<f64>() / n;
                let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                prop_assert!(is_close(merged.mean(), mean));
                prop_assert!(is_close(merged.standard_deviation().powi(2), variance));
            }
        }

        #[test]
        fn quantiles_are_within_one_percent(
            mut values in prop::collection::vec(-1e3..1e3_f64, 1..80), q in 0.0..=1.0_f64,
        ) {
            let estimate = Summary::of(values.iter().copied()).quantile(q).unwrap();
            values.sort_by(f64::total_cmp);
            let exact = values[(q * (values.len() - 1) as f64) as usize];
            prop_assert!((estimate - exact).abs() <= RELATIVE_ACCURACY * exact.abs() + MIN_MAGNITUDE, "{} for {}", estimate, exact);
        }

        #[test]
        fn a_summary_survives_conversion_to_parts_and_back(values in prop::collection::vec(-1e12..1e12_f64, 0..40)) {
            let summary = Summary::of(values);
            prop_assert_eq!(Summary::try_from(SummaryParts::from(summary.clone())), Ok(summary));
        }
    }

    #[test]
    fn summaries_of_extreme_values_have_consistent_parts() {
        let extremes = [f64::MAX, -f64::MAX, f64::MIN_POSITIVE, -0.0, f64::from(f32::MAX), 1e-300, 1e160, f64::NAN];
        let summary = Summary::of(extremes.into_iter().chain([f64::INFINITY, f64::NEG_INFINITY]));
        let mut merged = summary.clone();
        (0..20).for_each(|_| merged.merge(&merged.clone()));
        for summary in [summary, merged] {
            assert_eq!(Summary::try_from(SummaryParts::from(summary.clone())), Ok(summary));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_ignored() {
        let summary = Summary::of([1.0, f64::NAN, f64::INFINITY, 3.0]);
        assert_eq!((summary.count(), summary.mean()), (2, 2.0));
    }

    #[test]
    fn inconsistent_parts_are_refused() {
        let valid = SummaryParts::from(Summary::of([1.0, -2.0, 0.0]));
        let inconsistent = [
            SummaryParts { count: 4, ..valid.clone() },
            SummaryParts { mean: f64::NAN, ..valid.clone() },
            SummaryParts { positive: [(i32::MAX, 1)].into(), ..valid.clone() },
            SummaryParts { positive: [(0, u64::MAX), (1, u64::MAX)].into(), ..valid },
        ];
        for parts in inconsistent {
            assert_eq!(Summary::try_from(parts), Err(InvalidSummaryError));
        }
    }
}
