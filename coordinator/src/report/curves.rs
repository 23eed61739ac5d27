//! Curves of a stage in bounded memory, for any number of steps.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::buckets::{Aggregate, Buckets};

/// Maximal number of points of a curve.
const MAX_POINTS: usize = 400;

/// The curves of a stage: its measurements by name, over its steps.
#[derive(Clone, Debug)]
pub struct Curves(Buckets<BTreeMap<&'static str, Aggregate>>);

/// A curve, as columns of the same length. Each point aggregates a range of steps.
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

impl Default for Curves {
    fn default() -> Self {
        Self(Buckets::new(MAX_POINTS))
    }
}

impl Curves {
    /// Adds the measurements of a step. Steps have to be in order.
    pub fn add(&mut self, step: u64, values: impl Iterator<Item = (&'static str, f64)>) {
        self.0.add_step(step, values.map(|(name, value)| (name, Aggregate::of(Some(value)))).collect());
    }

    /// All curves by name.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, Curve> {
        let mut curves: BTreeMap<&'static str, Curve> = BTreeMap::new();
        for bucket in self.0.as_slice() {
            for (name, aggregate) in &bucket.content {
                let curve = curves.entry(name).or_default();
                curve.step.push(bucket.last);
                curve.mean.push(aggregate.mean());
                curve.min.push(aggregate.min);
                curve.max.push(aggregate.max);
            }
        }
        curves
    }
}
