//! The table of all metrics, and names that several programs and files use.
//!
//! - [`metrics`]: what a run measures: name, label, unit, direction, range and definition of each.
//! - [`names`]: names of training metrics, phases and domains, and the normalized names of splits.

pub mod metrics;
pub mod names;

pub use metrics::{
    Direction, EVALUATION_METRICS, METRICS, Metric, RETRIEVAL_METRICS, STEP_VALUES, Source, StepValue,
    TRAINING_METRICS, direction, label, metric,
};
