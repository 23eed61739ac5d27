//! The one table of metrics, and names that programs and files share.
//!
//! - [`metrics`]: what a run measures: name, label, unit, direction, range and definition of each.
//! - [`names`]: constants for names in the code, and the normalized names of splits.

pub mod metrics;
pub mod names;

pub use metrics::{
    Direction, EVALUATION_METRICS, METRICS, Metric, RETRIEVAL_METRICS, STEP_VALUES, Source, StepValue,
    TRAINING_METRICS, direction, label, metric,
};
