//! What happened to a run besides its training: workers that attached, changed data and settings,
//! pauses, the guard, and how the run ended.

use config::Change;
use dico_engine::{
    Outcome, WorkerId,
    data::{DataChange, SplitSize},
    plan::Position,
};
use proto::v1;
use rusqlite::{OptionalExtension, Row};
use serde::Serialize;

use super::ReadOnlyJournal;
use crate::{
    Error,
    queries::{self, DATA_SET_COLUMNS, GuardFiring, read_data_set, read_position, read_u64},
};

/// A worker that attached.
#[derive(Clone, Debug, PartialEq)]
pub struct AttachedWorker {
    /// Its id in the run.
    pub worker_id: WorkerId,
    /// Host name or address of its machine.
    pub host: String,
    /// The description of its data.
    pub data_set: v1::DataSet,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
}

/// A pause of the run by its guard or an operator, or the end of a pause.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// True for a pause, false for its end.
    pub is_paused: bool,
    /// The position of the value that made a rule fire, or the committed position.
    pub position: Position,
    /// Why the run was paused, as a message for display.
    pub reason: String,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
}

/// The end of the run or of a coordinator process.
#[derive(Clone, Debug, PartialEq)]
pub struct RunEnd {
    /// How it ended.
    pub outcome: Outcome,
    /// The committed position.
    pub position: Position,
    /// Why, as a message for display.
    pub reason: String,
    /// The name of the checkpoint with the result of a finished run.
    pub result: Option<String>,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
}

/// How a run ended, or its present state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum RunOutcome {
    /// All stages are done.
    Finished,
    /// The run cannot continue, for this reason.
    Failed(String),
    /// The run is paused, for this reason.
    Paused(String),
    /// The run is in progress, or its coordinator was stopped.
    Unfinished,
}

/// Settings that a coordinator has changed, because its run file differs from the one before.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingsChange {
    /// The last position with the old settings.
    pub position: Position,
    /// The settings with their old and new values.
    pub changes: Vec<Change>,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
}

/// The checkpoint from which a journal was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The position of the checkpoint's state.
    pub position: Position,
    /// The generation that saved it.
    pub generation: u64,
    /// Its name.
    pub checkpoint: String,
}

impl ReadOnlyJournal {
    /// The workers that attached, in order. A worker that attached again occurs again.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn attached_workers(&self) -> Result<Vec<AttachedWorker>, Error> {
        let query = format!("SELECT {DATA_SET_COLUMNS}, rank, host, at FROM attachments ORDER BY number");
        let read_worker = |row: &Row<'_>| {
            let (data_set, worker_id) = (read_data_set(row)?, WorkerId(row.get(7)?));
            Ok(AttachedWorker { worker_id, host: row.get(8)?, data_set, at: row.get(9)? })
        };
        self.query_all(&query, read_worker)
    }

    /// The size of the training split, as described by the worker that attached last; `None` if no
    /// worker has attached.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn training_split_size(&self) -> Result<Option<SplitSize>, Error> {
        Ok(queries::last_data_set(&self.connection)?.as_ref().map(SplitSize::from))
    }

    /// The changes of training data, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn data_changes(&self) -> Result<Vec<DataChange>, Error> {
        queries::data_changes(&self.connection)
    }

    /// The changes of settings, in order.
    ///
    /// # Errors
    /// SQLite cannot read them, or they are not as the coordinator writes them.
    pub fn settings_changes(&self) -> Result<Vec<SettingsChange>, Error> {
        let query = "SELECT stage, step, changes_json, at FROM settings_changes ORDER BY number";
        let read_change = |row: &Row<'_>| Ok((read_position(row, 0)?, row.get::<_, String>(2)?, row.get(3)?));
        let recorded = self.query_all(query, read_change)?.into_iter().map(|(position, changes, at)| {
            let malformed = |error| Error::Damaged(format!("a change of settings cannot be parsed: {error}"));
            Ok(SettingsChange { position, changes: serde_json::from_str(&changes).map_err(malformed)?, at })
        });
        recorded.collect()
    }

    /// The guard rules that have fired, in order, also those at steps that were given up.
    ///
    /// # Errors
    /// SQLite cannot read them, or one has an unknown action.
    pub fn guard_firings(&self) -> Result<Vec<GuardFiring>, Error> {
        queries::guard_firings(&self.connection)
    }

    /// The pauses and their ends, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn pauses(&self) -> Result<Vec<Pause>, Error> {
        self.query_all("SELECT is_paused, stage, step, reason, at FROM pauses ORDER BY number", |row| {
            let (is_paused, position) = (row.get(0)?, read_position(row, 1)?);
            Ok(Pause { is_paused, position, reason: row.get(3)?, at: row.get(4)? })
        })
    }

    /// The ends of coordinator processes that could record them, in order. A finished run has one
    /// with [`Outcome::Finished`].
    ///
    /// # Errors
    /// SQLite cannot read them, or one has an unknown outcome.
    pub fn run_ends(&self) -> Result<Vec<RunEnd>, Error> {
        let query = "SELECT outcome, stage, step, reason, result, at FROM run_ends ORDER BY number";
        let read_end = |row: &Row<'_>| {
            let reason: String = row.get(3)?;
            let known = [Outcome::Finished, Outcome::Stopped, Outcome::Failed(reason.clone())];
            let name = row.get_ref(0)?.as_str()?;
            let Some(outcome) = known.into_iter().find(|known| known.name() == name) else {
                return Ok(Err(Error::Damaged(format!("a coordinator ended with the unknown outcome {name:?}"))));
            };
            let (position, result, at) = (read_position(row, 1)?, row.get(4)?, row.get(5)?);
            Ok(Ok(RunEnd { outcome, position, reason, result, at }))
        };
        self.query_all(query, read_end)?.into_iter().collect()
    }

    /// Whether the run is complete.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn is_finished(&self) -> Result<bool, Error> {
        queries::is_finished(&self.connection)
    }

    /// How the run ended, or its present state.
    ///
    /// # Errors
    /// As [`Self::run_ends`].
    pub fn outcome(&self) -> Result<RunOutcome, Error> {
        if self.is_finished()? {
            return Ok(RunOutcome::Finished);
        }
        let (ends, last_pause) = (self.run_ends()?, self.pauses()?.pop());
        // A failed run may have continued under a new coordinator.
        let query = "SELECT formed_at FROM generations ORDER BY number DESC LIMIT 1";
        let formed_at: Option<f64> = self.connection.query_row(query, [], |row| row.get(0)).optional()?;
        let paused_at = last_pause.as_ref().map(|pause| pause.at);
        let continued_at = formed_at.into_iter().chain(paused_at).fold(f64::NEG_INFINITY, f64::max);
        let failure = ends.into_iter().rev().find(|end| matches!(end.outcome, Outcome::Failed(_)));
        Ok(match (failure, last_pause) {
            (Some(failure), _) if failure.at >= continued_at => RunOutcome::Failed(failure.reason),
            (_, Some(Pause { is_paused: true, reason, .. })) => RunOutcome::Paused(reason),
            _ => RunOutcome::Unfinished,
        })
    }

    /// The checkpoint from which the journal was recovered; `None` if it was not recovered. The
    /// recovery follows the run file, as the second record.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn recovery(&self) -> Result<Option<Recovery>, Error> {
        let query = "SELECT recoveries.stage, recoveries.step, recoveries.generation, checkpoint FROM recoveries
            JOIN chain USING (number) WHERE chain.kind = 'recovered' AND sequence = 2";
        let read_recovery = |row: &Row<'_>| {
            Ok(Recovery { position: read_position(row, 0)?, generation: read_u64(row, 2)?, checkpoint: row.get(3)? })
        };
        Ok(self.connection.query_row(query, [], read_recovery).optional()?)
    }
}
