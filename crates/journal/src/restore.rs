//! Restores a run from the journal, so that a restarted coordinator can continue it.

use std::collections::{BTreeMap, BTreeSet};

use config::GuardAction;
use dico_engine::{
    guard::TriggeredRule,
    lineage::BranchPoints,
    model_selection::Scores,
    plan::{Boundary, Position, SelectedSteps},
    restored::{RestoredRun, StepMeans},
    term_log::TermLog,
};
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

        let (committed, branch_points) = (self.committed(last_generation, start)?, self.branch_points()?);
        let query = "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL ORDER BY stage, step";
        let checkpoints = self.current_rows(query, &branch_points, read_checkpoint)?;
        let query = format!(
            "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL AND {IS_LAST_OF_STAGE_ENDED_EARLY} ORDER BY stage"
        );
        let superseded_checkpoints =
            connection.prepare(&query)?.query_map([], read_checkpoint)?.collect::<Result<Vec<_>, _>>()?;
        let query = "SELECT stage, step, generation FROM checkpoints";
        let saved = self.current_rows(query, &branch_points, |row| read_position(row, 0))?;
        let query = "SELECT stage, step, generation, metrics_json FROM evaluations ORDER BY generation";
        let read_scores = |row: &Row<'_>| Ok((read_position(row, 0)?, parse_metrics(row.get_ref(3)?.as_str()?)));
        let scores = Scores::from_iter(self.current_rows(query, &branch_points, read_scores)?);
        let saved = saved.into_iter().map(|position| (position, Boundary::Checkpoint));
        let passed_boundaries = saved.chain(scores.keys().map(|position| (*position, Boundary::Evaluation))).collect();
        let selected_steps = connection
            .prepare("SELECT stage, step FROM stage_ends ORDER BY number")?
            .query_map([], |row| Ok((row.get(0)?, read_u64(row, 1)?)))?
            .collect::<Result<SelectedSteps, _>>()?;
        Ok(RestoredRun {
            run_id,
            term_log: self.term_log()?,
            last_generation,
            step_means: self.recent_means(committed, &branch_points)?,
            rollbacks: rollbacks(connection, &branch_points)?,
            branch_points,
            committed,
            checkpoints,
            superseded_checkpoints,
            // `checkpoints::reconcile` adds them.
            unfinished_checkpoints: BTreeSet::new(),
            passed_boundaries,
            scores,
            selected_steps,
            pause_reason,
            data_set: last_data_set(connection)?,
            data_changes: data_changes(connection)?,
            is_finished: is_finished(connection)?,
        })
    }

    /// The rows of the present history of a query, in its order. The query's first columns are
    /// stage, step and generation.
    fn current_rows<T>(
        &self,
        query: &str,
        branch_points: &BranchPoints,
        read: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        let read_if_current = |row: &Row<'_>| {
            let is_current = branch_points.is_current(read_position(row, 0)?, read_u64(row, 2)?);
            is_current.then(|| read(row)).transpose()
        };
        let rows: Vec<Option<T>> =
            self.connection.prepare(query)?.query_map([], read_if_current)?.collect::<Result<_, _>>()?;
        Ok(rows.into_iter().flatten().collect())
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
    fn recent_means(
        &self,
        committed: Position,
        branch_points: &BranchPoints,
    ) -> Result<Vec<(Position, StepMeans)>, Error> {
        let file = run_file(&self.connection)?;
        let rules = file.stages.get(committed.stage as usize).map_or(&[][..], |stage| &stage.guard);
        let max_for = rules.iter().map(|rule| rule.for_ as usize).max().unwrap_or(0);
        let query = "SELECT stage, step, generation, summaries_json FROM steps WHERE stage = ? AND step <= ?
            ORDER BY step DESC, generation DESC";
        let mut statement = self.connection.prepare(query)?;
        let mut rows = statement.query(params![committed.stage, committed.step.cast_signed()])?;
        let mut means = Vec::new();
        while means.len() < max_for
            && let Some(row) = rows.next()?
        {
            let position = read_position(row, 0)?;
            if branch_points.is_current(position, read_u64(row, 2)?) {
                means.push((position, parse_means(&row.get::<_, String>(3)?)));
            }
        }
        means.reverse();
        Ok(means)
    }
}

/// Parses the means of a step's distributions, by name.
fn parse_means(json: &str) -> StepMeans {
    let summaries: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    summaries.into_iter().filter_map(|(name, summary)| Some((name, summary["mean"].as_f64()?))).collect()
}

/// The guard rules with `action: rollback` that have fired in the present history, in order.
fn rollbacks(connection: &Connection, branch_points: &BranchPoints) -> Result<Vec<(Position, TriggeredRule)>, Error> {
    let is_rollback = |firing: &GuardFiring| firing.rule.action == GuardAction::Rollback;
    let is_current = |firing: &GuardFiring| branch_points.is_current(firing.position, firing.generation);
    let firings = guard_firings(connection)?.into_iter().filter(is_rollback).filter(is_current);
    Ok(firings.map(|GuardFiring { position, rule, .. }| (position, rule)).collect())
}
