//! Curves of a stage in bounded memory, for any number of steps.

use std::collections::BTreeMap;

use serde::Serialize;

/// Maximal number of points of a curve.
const MAX_POINTS: usize = 400;

/// The curves of a stage: its measurements by name, over its steps.
#[derive(Clone, Debug, Default)]
pub struct Curves {
    /// The number of steps per point, minus one: 0 by default.
    extra_steps: u64,
    points: Vec<CurvePoint>,
}

/// A point of all curves: the aggregate of some consecutive steps.
#[derive(Clone, Debug)]
struct CurvePoint {
    last_step: u64,
    values: BTreeMap<&'static str, Values>,
}

/// The aggregate of a measurement over some steps.
#[derive(Clone, Copy, Debug)]
struct Values {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

/// A curve, as columns of the same length.
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
        let point = CurvePoint { last_step: step, values: values.collect() };
        let width = self.extra_steps + 1;
        match self.points.last_mut() {
            Some(last) if last.last_step.saturating_sub(1) / width == step.saturating_sub(1) / width => {
                last.merge(point);
            }
            _ => self.points.push(point),
        }
        if self.points.len() > MAX_POINTS {
            self.extra_steps = 2 * width - 1;
            self.merge_neighbours();
        }
    }

    /// Merges the points that belong together since the number of steps per point has doubled.
    fn merge_neighbours(&mut self) {
        let width = self.extra_steps + 1;
        let mut merged: Vec<CurvePoint> = Vec::with_capacity(self.points.len() / 2 + 1);
        for point in self.points.drain(..) {
            match merged.last_mut() {
                Some(last) if last.last_step.saturating_sub(1) / width == point.last_step.saturating_sub(1) / width => {
                    last.merge(point);
                }
                _ => merged.push(point),
            }
        }
        self.points = merged;
    }

    /// All curves by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, Curve> {
        let mut curves: BTreeMap<&'static str, Curve> = BTreeMap::new();
        for point in &self.points {
            for (name, Values { count, sum, min, max }) in &point.values {
                let curve = curves.entry(name).or_default();
                curve.step.push(point.last_step);
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
        self.last_step = later.last_step;
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
    fn few_steps_have_a_point_each() {
        let curve = curve(1..=5);
        assert_eq!(curve.step, [1, 2, 3, 4, 5]);
        assert_eq!((&curve.mean, &curve.min), (&curve.max, &curve.mean));
    }

    #[test]
    fn many_steps_are_merged_into_few_points_without_gaps() {
        for steps in [401, 1_000, 86_400, 1_000_001] {
            let curve = curve(1..=steps);
            assert!(
                (MAX_POINTS / 2..=MAX_POINTS).contains(&curve.step.len()),
                "{steps} steps have {} points",
                curve.step.len()
            );
            assert_eq!((curve.min[0], curve.step.last()), (1.0, Some(&steps)));
            assert_eq!(curve.max.last(), Some(&(steps as f64)));
            // Points are adjacent, and all but the last have the same width.
            let are_adjacent = curve.max.iter().zip(&curve.min[1..]).all(|(max, min)| max + 1.0 == *min);
            assert!(are_adjacent && curve.step.windows(3).all(|step| step[1] - step[0] >= step[2] - step[1]));
        }
    }

    #[test]
    fn steps_before_and_after_a_gap_are_not_merged() {
        let curve = curve((1..=1_000).chain(100_001..=101_000));
        assert!(curve.step.len() <= MAX_POINTS && curve.min.contains(&100_001.0), "{curve:?}");
    }
}
