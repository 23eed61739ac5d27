//! Curves of a stage in bounded memory, however many steps it has.

use std::collections::BTreeMap;

use serde::Serialize;

/// Maximal number of points of a curve.
const POINTS: usize = 400;

/// The curves of a stage: its measurements by name, over its steps.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    /// The number of steps per point, minus one.
    more: u64,
    points: Vec<CurvePoint>,
}

/// A point: some consecutive steps.
#[derive(Clone, Debug)]
struct CurvePoint {
    last: u64,
    values: BTreeMap<&'static str, Values>,
}

/// The aggregate of some steps' values.
#[derive(Clone, Copy, Debug)]
struct Values {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

/// A curve, as columns of equal length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Curve {
    /// The last step of each point.
    pub step: Vec<u64>,
    /// The mean over each point's steps.
    pub mean: Vec<f64>,
    /// The minimum over each point's steps.
    pub min: Vec<f64>,
    /// The maximum over each point's steps.
    pub max: Vec<f64>,
}

impl Values {
    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

impl Curves {
    /// Adds the measurements of a step. Steps have to be in order.
    pub fn add(&mut self, step: u64, values: impl Iterator<Item = (&'static str, f64)>) {
        let values = values.map(|(name, value)| (name, Values { count: 1, sum: value, min: value, max: value }));
        let point = CurvePoint { last: step, values: values.collect() };
        let width = self.more + 1;
        match self.points.last_mut() {
            Some(last) if (last.last.saturating_sub(1)) / width == step.saturating_sub(1) / width => last.merge(point),
            _ => self.points.push(point),
        }
        if self.points.len() > POINTS {
            self.more = 2 * width - 1;
            self.halve();
        }
    }

    /// Merges the points that now belong to the same steps.
    fn halve(&mut self) {
        let width = self.more + 1;
        let mut halved: Vec<CurvePoint> = Vec::with_capacity(self.points.len() / 2 + 1);
        for point in self.points.drain(..) {
            match halved.last_mut() {
                Some(last) if last.last.saturating_sub(1) / width == point.last.saturating_sub(1) / width => {
                    last.merge(point);
                }
                _ => halved.push(point),
            }
        }
        self.points = halved;
    }

    /// All curves by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, Curve> {
        let mut curves: BTreeMap<&'static str, Curve> = BTreeMap::new();
        for point in &self.points {
            for (name, Values { count, sum, min, max }) in &point.values {
                let curve = curves.entry(name).or_default();
                curve.step.push(point.last);
                curve.mean.push(sum / *count as f64);
                curve.min.push(*min);
                curve.max.push(*max);
            }
        }
        curves
    }
}

impl CurvePoint {
    fn merge(&mut self, later: Self) {
        self.last = later.last;
        for (name, values) in later.values {
            self.values.entry(name).and_modify(|own| own.merge(&values)).or_insert(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(steps: impl Iterator<Item = u64>) -> Curve {
        let mut curves = Curves::default();
        steps.for_each(|step| curves.add(step, [("loss", step as f64)].into_iter()));
        curves.all().remove("loss").unwrap()
    }

    #[test]
    fn few_steps_are_told_one_by_one() {
        let curve = curve(1..=5);
        assert_eq!(curve.step, [1, 2, 3, 4, 5]);
        assert_eq!((&curve.mean, &curve.min), (&curve.max, &curve.mean));
    }

    #[test]
    fn many_steps_are_told_in_few_points_and_none_is_left_out() {
        for steps in [401, 1_000, 86_400, 1_000_001] {
            let curve = curve(1..=steps);
            assert!(
                (POINTS / 2..=POINTS).contains(&curve.step.len()),
                "{steps} steps have {} points",
                curve.step.len()
            );
            assert_eq!((curve.min[0], curve.step.last()), (1.0, Some(&steps)));
            assert_eq!(curve.max.last(), Some(&(steps as f64)));
            // Points are adjacent, and all but the last have the same width.
            let touch = curve.max.iter().zip(&curve.min[1..]).all(|(max, min)| max + 1.0 == *min);
            assert!(touch && curve.step.windows(3).all(|step| step[1] - step[0] >= step[2] - step[1]));
        }
    }

    #[test]
    fn gaps_stay_gaps() {
        let curve = curve((1..=1_000).chain(100_001..=101_000));
        assert!(curve.step.len() <= POINTS && curve.min.contains(&100_001.0), "{curve:?}");
    }
}
