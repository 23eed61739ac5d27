//! Restores a run from the journal, so that a restarted coordinator can continue it.

use std::collections::{BTreeMap, BTreeSet};

use config::GuardAction;
use dico_engine::{
    guard::TriggeredRule,
    lineage::BranchPoints,
    model_selection::Scores,
    plan::{Boundaries, Boundary, Position, SelectedSteps},
    restored::{RestoredRun, StepMeans},
    term_log::TermLog,
};
use proto::v1;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Error, Journal, queries::*};

impl Journal {
    /// Restores the run from the records of earlier coordinators.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn restore(&self) -> Result<RestoredRun, Error> {
        let connection = &self.connection;
        let run_id = run_id(connection)?;
        let query = "SELECT CASE WHEN is_paused THEN reason END FROM pauses ORDER BY number DESC LIMIT 1";
        let pause_reason = connection.query_row(query, [], |row| row.get(0)).optional()?.flatten();
        let query = "SELECT number, stage, step FROM generations ORDER BY number DESC LIMIT 1";
        let last = connection.query_row(query, [], |row| Ok((read_u64(row, 0)?, read_position(row, 1)?))).optional()?;
        let Some((last_generation, start)) = last else {
            return Ok(RestoredRun { run_id, pause_reason, ..RestoredRun::default() });
        };

        let committed = self.committed(last_generation, start)?;
        let query = format!(
            "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints AS own
            WHERE deleted IS NULL AND {IS_CURRENT} ORDER BY stage, step"
        );
        let checkpoints = connection.prepare(&query)?.query_map([], read_checkpoint)?.collect::<Result<Vec<_>, _>>()?;
        let query = format!(
            "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL AND {IS_LAST_OF_STAGE_ENDED_EARLY} ORDER BY stage"
        );
        let superseded_checkpoints =
            connection.prepare(&query)?.query_map([], read_checkpoint)?.collect::<Result<Vec<_>, _>>()?;
        let saved = connection
            .prepare(&format!("SELECT stage, step FROM checkpoints AS own WHERE {IS_CURRENT}"))?
            .query_map([], |row| Ok((read_position(row, 0)?, Boundary::Checkpoint)))?
            .collect::<Result<Boundaries, _>>()?;
        let query =
            format!("SELECT stage, step, metrics_json FROM evaluations AS own WHERE {IS_CURRENT} ORDER BY generation");
        let scores = connection
            .prepare(&query)?
            .query_map([], |row| Ok((read_position(row, 0)?, parse_metrics(&row.get::<_, String>(2)?))))?
            .collect::<Result<Scores, _>>()?;
        let evaluated = scores.keys().map(|position| (*position, Boundary::Evaluation)).collect();
        let selected_steps = connection
            .prepare("SELECT stage, step FROM stage_ends ORDER BY number")?
            .query_map([], |row| Ok((row.get(0)?, read_u64(row, 1)?)))?
            .collect::<Result<SelectedSteps, _>>()?;
        Ok(RestoredRun {
            run_id,
            term_log: self.term_log()?,
            last_generation,
            branch_points: self.branch_points()?,
            committed,
            checkpoints,
            superseded_checkpoints,
            // `checkpoints::reconcile` adds them.
            unfinished_checkpoints: BTreeSet::new(),
            passed_boundaries: &saved | &evaluated,
            scores,
            step_means: self.recent_means(committed)?,
            selected_steps,
            rollbacks: rollbacks(connection)?,
            pause_reason,
            data_set: last_data_set(connection)?,
            data_changes: data_changes(connection)?,
            is_finished: is_finished(connection)?,
        })
    }

    /// The terms of all generations.
    fn term_log(&self) -> Result<TermLog, Error> {
        let mut log = TermLog::default();
        let mut generations = self.connection.prepare("SELECT number, term FROM generations ORDER BY number")?;
        for generation in generations.query_map([], |row| Ok((read_u64(row, 0)?, row.get::<_, i64>(1)?)))? {
            let (number, term) = generation?;
            log.record(number, term.cast_unsigned());
        }
        Ok(log)
    }

    /// The branch points: the starts of generations, and the states with which stages ended early.
    fn branch_points(&self) -> Result<BranchPoints, Error> {
        let mut branch_points = BranchPoints::default();
        let query = "SELECT generation + 1, stage, step FROM cuts ORDER BY generation";
        let mut starts = self.connection.prepare(query)?;
        for start in starts.query_map([], |row| Ok((read_u64(row, 0)?, read_position(row, 1)?)))? {
            let (generation, start) = start?;
            branch_points.add(generation, start);
        }
        Ok(branch_points)
    }

    /// The last committed position of the last generation, which has the number `number` and
    /// started at `start`. If its stage has ended with an earlier state, the position of that
    /// state.
    fn committed(&self, number: u64, start: Position) -> Result<Position, Error> {
        let first_row = |query: &str| {
            self.connection.query_row(query, [number.cast_signed()], |row| read_position(row, 0)).optional()
        };
        let last_step =
            first_row("SELECT stage, step FROM steps WHERE generation = ? ORDER BY stage DESC, step DESC LIMIT 1")?;
        let cut = first_row("SELECT stage, step FROM cuts WHERE generation >= ? ORDER BY stage, step LIMIT 1")?;
        let reached = last_step.unwrap_or_default().max(start);
        Ok(cut.map_or(reached, |cut| cut.min(reached)))
    }

    /// The means of the last steps of the current stage up to `committed`, as many as the largest
    /// `for` of the stage's guard rules. The state machine replays them, so that the guard's counts
    /// of consecutive values continue; rules that fire in the replay have fired before.
    fn recent_means(&self, committed: Position) -> Result<Vec<(Position, StepMeans)>, Error> {
        let file = run_file(&self.connection)?;
        let rules = file.stages.get(committed.stage as usize).map_or(&[][..], |stage| &stage.guard);
        let Some(max_for) = rules.iter().map(|rule| rule.for_).max() else { return Ok(Vec::new()) };
        let query = format!(
            "SELECT stage, step, summaries_json FROM steps AS own WHERE stage = ? AND step <= ? AND {IS_CURRENT}
            ORDER BY step DESC, generation DESC LIMIT ?"
        );
        let parameters = params![committed.stage, committed.step.cast_signed(), i64::from(max_for)];
        let mut means = self
            .connection
            .prepare(&query)?
            .query_map(parameters, |row| Ok((read_position(row, 0)?, parse_means(&row.get::<_, String>(2)?))))?
            .collect::<Result<Vec<_>, _>>()?;
        means.reverse();
        Ok(means)
    }
}

/// Parses the means of a step's distributions, by name.
fn parse_means(json: &str) -> StepMeans {
    let summaries: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    summaries.into_iter().filter_map(|(name, summary)| Some((name, summary["mean"].as_f64()?))).collect()
}

/// The data of the worker that attached last; none if no worker has attached.
fn last_data_set(connection: &Connection) -> Result<Option<v1::DataSet>, Error> {
    let query = "SELECT train_images, train_captions, skipped_images, validation_images, training_fingerprint,
        validation_fingerprint, models_fingerprint FROM attachments ORDER BY number DESC LIMIT 1";
    let read_data_set = |row: &Row<'_>| {
        Ok(v1::DataSet {
            train_images: read_u64(row, 0)?,
            train_captions: read_u64(row, 1)?,
            skipped_images: read_u64(row, 2)?,
            validation_images: read_u64(row, 3)?,
            training_fingerprint: row.get(4)?,
            validation_fingerprint: row.get(5)?,
            models_fingerprint: row.get(6)?,
        })
    };
    Ok(connection.query_row(query, [], read_data_set).optional()?)
}

/// The guard rules with `action: rollback` that have fired in the present history, in order.
fn rollbacks(connection: &Connection) -> Result<Vec<(Position, TriggeredRule)>, Error> {
    let query = format!(
        "SELECT stage, step, metric, value, bound, is_above, first_stage, first_step FROM guard_firings AS own
        WHERE action = ? AND {IS_CURRENT} ORDER BY number"
    );
    let action = GuardAction::Rollback;
    let read_rule = |row: &Row<'_>| {
        let rule = TriggeredRule {
            metric: row.get(2)?,
            value: row.get::<_, Option<f64>>(3)?.unwrap_or(f64::NAN),
            bound: row.get(4)?,
            is_above: row.get(5)?,
            action,
            first_position: read_position(row, 6)?,
        };
        Ok((read_position(row, 0)?, rule))
    };
    Ok(connection.prepare(&query)?.query_map([action.name()], read_rule)?.collect::<Result<_, _>>()?)
}
