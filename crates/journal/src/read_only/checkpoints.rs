//! Checkpoints that were not deleted.

use dico_engine::{checkpoint::Checkpoint, lineage::StateFate};

use super::ReadOnlyJournal;
use crate::{
    Error,
    queries::{IS_LAST_OF_STAGE_ENDED_EARLY, read_checkpoint},
};

/// A checkpoint that was not deleted, and that a run may resume from or that is kept for the user.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedCheckpoint {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// When it was complete, in Unix seconds.
    pub at: f64,
    /// Whether the run may resume from it. False for the last checkpoint of a stage that ended with
    /// an earlier one: the last checkpoint is kept only for the user.
    pub is_in_present_history: bool,
}

impl ReadOnlyJournal {
    /// The checkpoints that were not deleted, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn kept_checkpoints(&self) -> Result<Vec<Checkpoint>, Error> {
        let query = "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL ORDER BY stage, step";
        self.query_all(query, read_checkpoint)
    }

    /// The checkpoints that were not deleted and are of the present history, or are the last ones
    /// of stages that ended with an earlier one; in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn checkpoints(&self) -> Result<Vec<RecordedCheckpoint>, Error> {
        let lineage = self.lineage()?;
        let query = format!(
            "SELECT stage, step, generation, run_id, name, parameters_sha256, at, {IS_LAST_OF_STAGE_ENDED_EARLY}
            FROM checkpoints WHERE deleted IS NULL ORDER BY stage, step"
        );
        let checkpoints = self.query_all(&query, |row| {
            let (checkpoint, at, is_last_of_stage) = (read_checkpoint(row)?, row.get(6)?, row.get::<_, bool>(7)?);
            let fate = lineage.fate(checkpoint.position, checkpoint.generation);
            let is_in_present_history = fate == StateFate::Current;
            let recorded = RecordedCheckpoint { checkpoint, at, is_in_present_history };
            Ok((is_in_present_history || is_last_of_stage).then_some(recorded))
        })?;
        Ok(checkpoints.into_iter().flatten().collect())
    }
}
