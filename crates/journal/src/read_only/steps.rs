//! The measurements of steps.

use std::collections::BTreeMap;

use dico_engine::{lineage::StateFate, plan::Position};
use rusqlite::{Row, params};
use serde::Deserialize;

use super::ReadOnlyJournal;
use crate::{
    Error,
    queries::{read_position, read_u64},
};

/// The columns that [`read_step`] reads.
const COLUMNS: &str = "stage, step, generation, at, samples, loss, learning_rate, gradient_norm, seconds,
    all_reduce_seconds, lag_seconds, summaries_json";

/// A recorded step with its measurements. A number is `None` if the step did not report it, or if
/// it is not a number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RecordedStep {
    /// The position that the step reached.
    pub position: Position,
    /// The generation that trained it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// The number of samples that it trained on.
    pub samples: u64,
    /// The loss of the batch.
    pub loss: Option<f64>,
    /// The learning rate.
    pub learning_rate: Option<f64>,
    /// The norm of the gradient before it was clipped.
    pub gradient_norm: Option<f64>,
    /// The duration of the step.
    pub seconds: Option<f64>,
    /// The duration of the all-reduce.
    pub all_reduce_seconds: Option<f64>,
    /// The compute time of the slowest worker minus the average of the others.
    pub lag_seconds: Option<f64>,
    /// Distributions by name.
    pub summaries: BTreeMap<String, Distribution>,
}

/// The number of values of a distribution, and its mean, range and quantiles. They are `None` if
/// the distribution is empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// The number of values.
    pub count: u64,
    /// The mean.
    pub mean: Option<f64>,
    /// The smallest value.
    pub min: Option<f64>,
    /// The largest value.
    pub max: Option<f64>,
    /// The 5 % quantile.
    pub p05: Option<f64>,
    /// The 25 % quantile.
    pub p25: Option<f64>,
    /// The median.
    pub p50: Option<f64>,
    /// The 75 % quantile.
    pub p75: Option<f64>,
    /// The 95 % quantile.
    pub p95: Option<f64>,
}

impl RecordedStep {
    /// The samples per second of the step; `None` if its duration is not known.
    #[must_use]
    pub fn samples_per_second(&self) -> Option<f64> {
        self.seconds.filter(|seconds| *seconds > 0.0).map(|seconds| self.samples as f64 / seconds)
    }
}

impl ReadOnlyJournal {
    /// The first `max` steps beyond `after`, in the order of the run. Includes steps that were
    /// given up. Fast for any `after`, because steps are stored in this order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn recorded_steps(&self, after: Position, max: usize) -> Result<Vec<RecordedStep>, Error> {
        let query = format!(
            "SELECT {COLUMNS} FROM steps WHERE (stage, step) > (?, ?) ORDER BY stage, step, generation LIMIT ?"
        );
        let parameters = params![after.stage, after.step.cast_signed(), max as i64];
        let mut statement = self.connection.prepare_cached(&query)?;
        Ok(statement.query_map(parameters, read_step)?.collect::<Result<_, _>>()?)
    }

    /// Calls `handle_step` with each step beyond `after` that was not given up, in the order of the
    /// run. Does not return a list, because all steps may not fit into memory.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn for_each_step(&self, after: Position, mut handle_step: impl FnMut(RecordedStep)) -> Result<(), Error> {
        let lineage = self.lineage()?;
        let query =
            format!("SELECT {COLUMNS} FROM steps WHERE (stage, step) > (?, ?) ORDER BY stage, step, generation");
        let mut statement = self.connection.prepare(&query)?;
        let mut rows = statement.query(params![after.stage, after.step.cast_signed()])?;
        while let Some(row) = rows.next()? {
            if lineage.fate(read_position(row, 0)?, read_u64(row, 2)?) != StateFate::GivenUp {
                handle_step(read_step(row)?);
            }
        }
        Ok(())
    }
}

fn read_step(row: &Row<'_>) -> rusqlite::Result<RecordedStep> {
    Ok(RecordedStep {
        position: read_position(row, 0)?,
        generation: read_u64(row, 2)?,
        at: row.get(3)?,
        samples: read_u64(row, 4)?,
        loss: row.get(5)?,
        learning_rate: row.get(6)?,
        gradient_norm: row.get(7)?,
        seconds: row.get(8)?,
        all_reduce_seconds: row.get(9)?,
        lag_seconds: row.get(10)?,
        summaries: serde_json::from_str(row.get_ref(11)?.as_str()?).unwrap_or_default(),
    })
}
