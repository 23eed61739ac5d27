//! Mergeable summaries of distributions: workers report them for their shares of a step, the
//! coordinator merges them for the whole step.
//!
//! Count, mean and variance merge exactly (Chan, Golub and LeVeque 1979); quantiles come from a DDSketch (Masson, Rim and
//! Lee, VLDB 2019) whose answers are within 1% of the true value. The number of buckets is bounded, whatever a peer
//! sends.

use std::collections::BTreeMap;

use proto::v1;

pub mod names;

/// The relative accuracy of quantiles.
const ACCURACY: f64 = 0.01;
/// Values nearer to zero count as zero.
const SMALLEST: f64 = 1e-9;
/// Values farther from zero are clamped to this: their squares can still be summed.
const LARGEST: f64 = 1e100;
/// Buckets beyond these are clamped, so a sketch never holds more than 2 x 2,000 of them; covers 1e-9 to beyond 1e9.
const BUCKETS: std::ops::RangeInclusive<i32> = -1040..=1040;

/// A distribution: count, moments, extremes and a quantile sketch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    count: u64,
    mean: f64,
    m2: f64,
    min: f64,
    max: f64,
    positive: BTreeMap<i32, u64>,
    negative: BTreeMap<i32, u64>,
    zero: u64,
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
        let x = x.clamp(-LARGEST, LARGEST);
        let mut one = Self { count: 1, mean: x, m2: 0.0, min: x, max: x, ..Self::default() };
        match x.abs() {
            magnitude if magnitude < SMALLEST => one.zero = 1,
            magnitude if x > 0.0 => _ = one.positive.insert(bucket(magnitude), 1),
            magnitude => _ = one.negative.insert(bucket(magnitude), 1),
        }
        self.merge(&one);
    }

    /// Merges another summary into this one.
    pub fn merge(&mut self, other: &Self) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            other.clone_into(self);
            return;
        }
        let (n, m) = (self.count as f64, other.count as f64);
        let delta = other.mean - self.mean;
        self.count += other.count;
        self.mean += delta * m / (n + m);
        self.m2 += other.m2 + delta * delta * n * m / (n + m);
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        self.zero += other.zero;
        for (mine, theirs) in [(&mut self.positive, &other.positive), (&mut self.negative, &other.negative)] {
            for (&bucket, &count) in theirs {
                *mine.entry(bucket).or_default() += count;
            }
        }
    }

    /// The number of values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean; 0 if there are no values.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard deviation (of the population).
    #[must_use]
    pub fn deviation(&self) -> f64 {
        if self.count == 0 { 0.0 } else { (self.m2 / self.count as f64).max(0.0).sqrt() }
    }

    /// The `q` quantile for `q` in 0..=1, within 1%; none if there are no values.
    #[must_use]
    pub fn quantile(&self, q: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * (self.count - 1) as f64) as u64;
        let below = self.negative.iter().rev().map(|(&b, &n)| (-value(b), n));
        let above = self.positive.iter().map(|(&b, &n)| (value(b), n));
        let mut seen = 0;
        for (value, count) in below.chain([(0.0, self.zero)]).chain(above) {
            seen += count;
            if seen > rank {
                return Some(value.clamp(self.min, self.max));
            }
        }
        Some(self.max)
    }
}

impl From<&Summary> for v1::Summary {
    fn from(s: &Summary) -> Self {
        Self {
            count: s.count,
            mean: s.mean,
            m2: s.m2,
            min: s.min,
            max: s.max,
            positive: s.positive.iter().map(|(&b, &n)| (b, n)).collect(),
            negative: s.negative.iter().map(|(&b, &n)| (b, n)).collect(),
            zero: s.zero,
        }
    }
}

/// A summary with inconsistent parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("summary whose count, moments and buckets do not belong together")
    }
}

impl std::error::Error for Malformed {}

impl TryFrom<&v1::Summary> for Summary {
    type Error = Malformed;

    fn try_from(wire: &v1::Summary) -> Result<Self, Malformed> {
        /// Maximal number of values, more than any step has; keeps later sums far from overflow.
        const MOST: u64 = 1 << 40;
        let buckets = || wire.positive.iter().chain(&wire.negative);
        let counts = buckets().map(|(_, &n)| n).chain([wire.zero]);
        let total = counts.fold(0_u64, u64::saturating_add);
        let finite = [wire.mean, wire.m2, wire.min, wire.max].iter().all(|x| x.is_finite());
        let known = buckets().all(|(bucket, _)| BUCKETS.contains(bucket));
        if !finite || !known || total != wire.count || total > MOST || wire.min > wire.max || wire.m2 < 0.0 {
            return Err(Malformed);
        }
        Ok(Self {
            count: wire.count,
            mean: wire.mean,
            m2: wire.m2,
            min: wire.min,
            max: wire.max,
            positive: wire.positive.iter().map(|(&b, &n)| (b, n)).collect(),
            negative: wire.negative.iter().map(|(&b, &n)| (b, n)).collect(),
            zero: wire.zero,
        })
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
            prop_assert!((estimate - exact).abs() <= ACCURACY * exact.abs() + SMALLEST, "{} for {}", estimate, exact);
        }

        #[test]
        fn the_wire_keeps_everything(values in prop::collection::vec(-1e12..1e12_f64, 0..40)) {
            let summary = Summary::of(values);
            prop_assert_eq!(Summary::try_from(&v1::Summary::from(&summary)), Ok(summary));
        }
    }

    #[test]
    fn whatever_values_there_are_the_wire_takes_them() {
        let extremes = [f64::MAX, -f64::MAX, f64::MIN_POSITIVE, -0.0, f64::from(f32::MAX), 1e-300, 1e160, f64::NAN];
        let summary = Summary::of(extremes.into_iter().chain([f64::INFINITY, f64::NEG_INFINITY]));
        let mut merged = summary.clone();
        (0..20).for_each(|_| merged.merge(&merged.clone()));
        for summary in [summary, merged] {
            assert_eq!(Summary::try_from(&v1::Summary::from(&summary)), Ok(summary));
        }
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let summary = Summary::of([1.0, f64::NAN, f64::INFINITY, 3.0]);
        assert_eq!((summary.count(), summary.mean()), (2, 2.0));
    }

    #[test]
    fn a_peer_cannot_send_parts_that_do_not_belong_together() {
        let good = v1::Summary::from(&Summary::of([1.0, -2.0, 0.0]));
        let broken = [
            v1::Summary { count: 4, ..good.clone() },
            v1::Summary { mean: f64::NAN, ..good.clone() },
            v1::Summary { positive: [(i32::MAX, 1)].into(), ..good.clone() },
            v1::Summary { positive: [(0, u64::MAX), (1, u64::MAX)].into(), ..good },
        ];
        for wire in broken {
            assert_eq!(Summary::try_from(&wire), Err(Malformed));
        }
    }
}
