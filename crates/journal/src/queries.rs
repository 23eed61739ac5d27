//! Queries and row readers that the writer and the readers of the journal share.

use std::collections::{BTreeMap, BTreeSet};

use config::{GuardAction, RunFile};
use dico_engine::{
    checkpoint::Checkpoint,
    data::{DataChange, SplitSize},
    guard::TriggeredRule,
    plan::Position,
};
use proto::v1;
use rusqlite::{Connection, OptionalExtension, Row};

use super::Error;

/// SQL: whether a checkpoint is the last one of a stage that ended with an earlier checkpoint. The
/// run cannot resume from the last one, but it is kept for the user.
pub(super) const IS_LAST_OF_STAGE_ENDED_EARLY: &str =
    "(stage, step) IN (SELECT stage, max(step) FROM checkpoints AS other
    WHERE deleted IS NULL AND EXISTS (SELECT 1 FROM stage_ends AS ended
        WHERE ended.stage = other.stage AND ended.step < other.step) GROUP BY stage)";

/// The columns of `attachments` that [`read_data_set`] reads.
pub(super) const DATA_SET_COLUMNS: &str = "train_images, train_captions, skipped_images, validation_images,
    training_fingerprint, validation_fingerprint, models_fingerprint";

/// A guard rule that has fired.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardFiring {
    /// The position of the step or evaluation.
    pub position: Position,
    /// The last generation at that time.
    pub generation: u64,
    /// The rule and the value.
    pub rule: TriggeredRule,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
}

/// Reads an integer whose bits are those of a `u64`. SQLite's integers are signed.
pub(super) fn read_u64(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index).map(i64::cast_unsigned)
}

/// Reads a position from two columns: stage and step.
pub(super) fn read_position(row: &Row<'_>, first: usize) -> rusqlite::Result<Position> {
    Ok(Position { stage: row.get(first)?, step: read_u64(row, first + 1)? })
}

/// Reads a checkpoint from the columns stage, step, generation, run id, name and hash.
pub(super) fn read_checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    Ok(Checkpoint {
        position: read_position(row, 0)?,
        generation: read_u64(row, 2)?,
        run_id: row.get(3)?,
        name: row.get(4)?,
        parameters_sha256: row.get(5)?,
    })
}

/// Reads the description of a worker's data from [`DATA_SET_COLUMNS`], the first of the row.
pub(super) fn read_data_set(row: &Row<'_>) -> rusqlite::Result<v1::DataSet> {
    Ok(v1::DataSet {
        train_images: read_u64(row, 0)?,
        train_captions: read_u64(row, 1)?,
        skipped_images: read_u64(row, 2)?,
        validation_images: read_u64(row, 3)?,
        training_fingerprint: row.get(4)?,
        validation_fingerprint: row.get(5)?,
        models_fingerprint: row.get(6)?,
    })
}

/// Parses scores by name. Leaves out scores that are not finite.
pub(super) fn parse_metrics(json: &str) -> BTreeMap<String, f64> {
    let metrics: BTreeMap<String, Option<f64>> = serde_json::from_str(json).unwrap_or_default();
    metrics.into_iter().filter_map(|(name, score)| Some((name, score?))).collect()
}

/// The run's id.
pub(super) fn run_id(connection: &Connection) -> Result<String, Error> {
    Ok(connection.query_row("SELECT id FROM run ORDER BY number DESC LIMIT 1", [], |row| row.get(0))?)
}

/// The last run file that the coordinator accepted.
pub(super) fn run_file(connection: &Connection) -> Result<RunFile, Error> {
    let query = "SELECT run_file_json FROM run ORDER BY number DESC LIMIT 1";
    let text: String = connection.query_row(query, [], |row| row.get(0))?;
    serde_json::from_str(&text).map_err(|error| Error::RunFile(error.to_string()))
}

/// The ids that the run had in earlier journals, which this one replaced.
pub(super) fn former_run_ids(connection: &Connection) -> Result<BTreeSet<String>, Error> {
    let query = "SELECT value FROM recoveries, json_each(run_ids_json)";
    Ok(connection.prepare(query)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Whether the run is complete.
pub(super) fn is_finished(connection: &Connection) -> Result<bool, Error> {
    let query = "SELECT EXISTS (SELECT 1 FROM run_ends WHERE outcome = 'finished')";
    Ok(connection.query_row(query, [], |row| row.get(0))?)
}

/// The data of the worker that attached last; none if no worker has attached.
pub(super) fn last_data_set(connection: &Connection) -> Result<Option<v1::DataSet>, Error> {
    let query = format!("SELECT {DATA_SET_COLUMNS} FROM attachments ORDER BY number DESC LIMIT 1");
    Ok(connection.query_row(&query, [], read_data_set).optional()?)
}

/// The guard rules that have fired, in order.
pub(super) fn guard_firings(connection: &Connection) -> Result<Vec<GuardFiring>, Error> {
    let query = "SELECT stage, step, generation, metric, value, bound, action, is_above, first_stage, first_step, at
        FROM guard_firings ORDER BY number";
    let read_firing = |row: &Row<'_>| {
        let action = row.get_ref(6)?.as_str()?;
        let Some(action) = GuardAction::ALL.into_iter().find(|known| known.name() == action) else {
            return Ok(Err(Error::Damaged(format!("a guard rule has the unknown action {action:?}"))));
        };
        let rule = TriggeredRule {
            metric: row.get(3)?,
            value: row.get::<_, Option<f64>>(4)?.unwrap_or(f64::NAN),
            bound: row.get(5)?,
            action,
            is_above: row.get(7)?,
            first_position: read_position(row, 8)?,
        };
        let (position, generation) = (read_position(row, 0)?, read_u64(row, 2)?);
        Ok(Ok(GuardFiring { position, generation, rule, at: row.get(10)? }))
    };
    connection.prepare(query)?.query_map([], read_firing)?.collect::<Result<Vec<_>, _>>()?.into_iter().collect()
}

/// The changes of training data, in order, with the positions at which they took effect, if they
/// have.
pub(super) fn data_changes(connection: &Connection) -> Result<Vec<DataChange>, Error> {
    let query = "SELECT generation, images_before, captions_before FROM data_changes ORDER BY number";
    let read_change = |row: &Row<'_>| {
        let before = SplitSize { images: read_u64(row, 1)?, captions: read_u64(row, 2)? };
        Ok(DataChange { generation: read_u64(row, 0)?, from: None, before })
    };
    let recorded: Vec<DataChange> = connection.prepare(query)?.query_map([], read_change)?.collect::<Result<_, _>>()?;
    let first_start = "SELECT stage, step FROM generations WHERE number >= ? ORDER BY stage, step LIMIT 1";
    let mut changes = Vec::new();
    for change in recorded {
        let from = connection
            .query_row(first_start, [change.generation.cast_signed()], |row| read_position(row, 0))
            .optional()?;
        changes.push(DataChange { from, ..change });
    }
    Ok(changes)
}
