//! Restores a run from the journal, so that a restarted coordinator can continue it.

use std::collections::{BTreeMap, BTreeSet};

use dico_engine::{
    lineage::BranchPoints,
    model_selection::Scores,
    plan::{Boundaries, Boundary, Position, SelectedSteps},
    record::EventKind,
    restored::{RestoredRun, StepMeans},
    term_log::TermLog,
};
use proto::v1;
use rusqlite::{OptionalExtension, params};

use super::{Error, Journal, queries::*};

impl Journal {
    /// Restores the run from the records of earlier coordinators.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn restore(&self) -> Result<RestoredRun, Error> {
        let connection = &self.connection;
        let run_id = run_id(connection)?;
        let query = "SELECT CASE kind WHEN ?1 THEN detail_json ->> 'reason' END FROM events WHERE kind IN (?1, ?2)
            ORDER BY rowid DESC LIMIT 1";
        let kinds = [EventKind::Paused, EventKind::Resumed].map(EventKind::name);
        let pause_reason = connection.query_row(query, kinds, |row| row.get(0)).optional()?.flatten();
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
        let query = "SELECT detail_json ->> 'stage', detail_json ->> 'step' FROM events WHERE kind = ? ORDER BY rowid";
        let selected_steps = connection
            .prepare(query)?
            .query_map([EventKind::StageEndedEarly.name()], |row| Ok((row.get(0)?, read_u64(row, 1)?)))?
            .collect::<Result<SelectedSteps, _>>()?;
        let query = "SELECT detail_json FROM events WHERE kind = ? ORDER BY rowid DESC LIMIT 1";
        let latest =
            |kind: EventKind| connection.query_row(query, [kind.name()], |row| row.get::<_, String>(0)).optional();
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
            pause_reason,
            data_set: latest(EventKind::Attached)?.and_then(|detail| parse_data_set(&detail)),
            data_changes: data_changes(connection)?,
            is_finished: latest(EventKind::Finished)?.is_some(),
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

/// Parses the data set in the detail of a `joined` event, which records that a worker attached;
/// none if the detail lacks a field.
fn parse_data_set(detail: &str) -> Option<v1::DataSet> {
    let detail: serde_json::Value = serde_json::from_str(detail).ok()?;
    let number = |key: &str| detail.get(key)?.as_u64();
    let text = |key: &str| Some(detail.get(key)?.as_str()?.to_owned());
    Some(v1::DataSet {
        train_images: number("train_images")?,
        train_captions: number("train_captions")?,
        skipped_images: number("skipped_images")?,
        training_fingerprint: text("training_fingerprint")?,
        validation_fingerprint: text("validation_fingerprint")?,
        models_fingerprint: text("models_fingerprint")?,
        validation_images: number("validation_images")?,
    })
}
