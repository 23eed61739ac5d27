//! SQL conditions and row readers that the queries of the journal share.

use std::collections::BTreeMap;

use config::RunFile;
use dico_engine::{
    checkpoint::Checkpoint,
    data::{DataChange, SplitSize},
    plan::Position,
};
use rusqlite::{Connection, OptionalExtension, Row};

use super::Error;

/// SQL: whether the row `own` belongs to the present history.
pub(super) const IS_CURRENT: &str = "NOT EXISTS (SELECT 1 FROM cuts
    WHERE cuts.generation >= own.generation AND (cuts.stage, cuts.step) < (own.stage, own.step))";

/// SQL, for a row `own` that is not [`IS_CURRENT`]: whether it is not selected, because its stage
/// ended with an earlier checkpoint that had the best score. Otherwise the row was given up. Agrees
/// with [`Lineage::fate`](dico_engine::lineage::Lineage::fate).
pub(super) const IS_NOT_SELECTED: &str = "EXISTS (SELECT 1 FROM stage_ends AS ended
    WHERE ended.cause IN ('best_state', 'early_stopping') AND ended.stage = own.stage AND ended.step < own.step
    AND ended.generation >= own.generation
    AND NOT EXISTS (SELECT 1 FROM cuts WHERE cuts.generation >= ended.generation
        AND (cuts.stage, cuts.step) < (ended.stage, ended.step))
    AND NOT EXISTS (SELECT 1 FROM cuts WHERE cuts.generation >= own.generation
        AND cuts.generation < ended.generation AND (cuts.stage, cuts.step) < (own.stage, own.step)))";

/// SQL: whether a checkpoint is the last one of a stage that ended with an earlier checkpoint. The
/// run cannot resume from the last one, but it is kept for the user.
pub(super) const IS_LAST_OF_STAGE_ENDED_EARLY: &str =
    "(stage, step) IN (SELECT stage, max(step) FROM checkpoints AS other
    WHERE deleted IS NULL AND EXISTS (SELECT 1 FROM stage_ends AS ended
        WHERE ended.stage = other.stage AND ended.step < other.step) GROUP BY stage)";

/// SQL: whether curves and reports show the row `own`: it is [`IS_CURRENT`] or [`IS_NOT_SELECTED`].
pub(super) fn is_shown_sql() -> String {
    format!("({IS_CURRENT} OR {IS_NOT_SELECTED})")
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

/// Whether the run is complete.
pub(super) fn is_finished(connection: &Connection) -> Result<bool, Error> {
    let query = "SELECT EXISTS (SELECT 1 FROM run_ends WHERE outcome = 'finished')";
    Ok(connection.query_row(query, [], |row| row.get(0))?)
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
