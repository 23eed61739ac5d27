//! The history of a run with all its branches: generations, steps, and where the run continued from
//! an earlier state.

use std::collections::BTreeSet;

use dico_engine::{
    WorkerId,
    lineage::{Lineage, ModelSelection, StateFate},
    model_selection::EndCause,
    plan::Position,
};
use rusqlite::{OptionalExtension, Params, Row, params};
use serde_json::Value;

use super::ReadOnlyJournal;
use crate::{
    Error,
    queries::{read_position, read_u64},
};

/// A recorded generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The number of the generation.
    pub number: u64,
    /// The worker ids of its members.
    pub members: Vec<WorkerId>,
    /// Why the previous generation ended; `start` for a coordinator's first generation.
    pub cause: String,
    /// The position at which it started.
    pub start: Position,
    /// Where its initial parameters come from: `worker N`, `checkpoint NAME` or `seed`.
    pub source: String,
    /// When it was formed. Times are in Unix seconds.
    pub formed_at: f64,
    /// When all members were ready; `None` if they never were.
    pub ready_at: Option<f64>,
    /// When it ended; `None` if it has not ended.
    pub ended_at: Option<f64>,
}

/// A recorded step of a generation, without its measurements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The position that the step reached.
    pub position: Position,
    /// The generation that trained it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// Whether the step belongs to the present history, was not selected, or was given up.
    pub fate: StateFate,
}

/// The end of a stage with an earlier state than its last one.
#[derive(Clone, Debug, PartialEq)]
pub struct StageEnd {
    /// The position of the state that the stage ended with.
    pub position: Position,
    /// The last generation of the stage.
    pub generation: u64,
    /// Why it ended, for programs.
    pub cause: EndCause,
    /// Why it ended, as a message for display.
    pub reason: String,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
}

/// A move of the committed position by the start of a generation: back if committed steps were
/// given up, forward if steps that are not in the journal were adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryMove {
    /// The number of the generation.
    pub generation: u64,
    /// The committed position before.
    pub from: Position,
    /// The start of the generation.
    pub to: Position,
}

/// A cursor of [`ReadOnlyJournal::earliest_branch_point_since`]: how many generations, and how many
/// stages that ended early, the caller has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineageCursor {
    generations: u64,
    ended_stages: u64,
}

impl ReadOnlyJournal {
    /// All generations, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn generations(&self) -> Result<Vec<Generation>, Error> {
        let query = "SELECT number, members_json, cause, stage, step, source, formed_at, ready_at, ended_at
            FROM generations ORDER BY number";
        let read_generation = |row: &Row<'_>| {
            Ok(Generation {
                number: read_u64(row, 0)?,
                members: parse_worker_ids(&row.get::<_, String>(1)?),
                cause: row.get(2)?,
                start: read_position(row, 3)?,
                source: row.get(5)?,
                formed_at: row.get(6)?,
                ready_at: row.get(7)?,
                ended_at: row.get(8)?,
            })
        };
        self.query_all(query, read_generation)
    }

    /// The host, the device and the program's version of all past and present members, each with
    /// its worker id.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn machines(&self) -> Result<Vec<([String; 3], WorkerId)>, Error> {
        let query = "SELECT DISTINCT value ->> 'host', value ->> 'device', value ->> 'version', value ->> 'rank'
            FROM generations, json_each(members_json)";
        self.query_all(query, |row| Ok(([row.get(0)?, row.get(1)?, row.get(2)?], WorkerId(row.get(3)?))))
    }

    /// All steps that were reported, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn steps(&self) -> Result<Vec<Step>, Error> {
        self.query_steps("SELECT stage, step, generation, at FROM steps ORDER BY stage, step, generation", [])
    }

    /// The steps that were recorded after `time` (Unix seconds), in the order of their times.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn steps_recorded_after(&self, time: f64) -> Result<Vec<Step>, Error> {
        self.query_steps("SELECT stage, step, generation, at FROM steps WHERE at > ? ORDER BY at", [time])
    }

    fn query_steps(&self, query: &str, parameters: impl Params) -> Result<Vec<Step>, Error> {
        let lineage = self.lineage()?;
        let read_step = |row: &Row<'_>| {
            let (position, generation) = (read_position(row, 0)?, read_u64(row, 2)?);
            Ok(Step { position, generation, at: row.get(3)?, fate: lineage.fate(position, generation) })
        };
        Ok(self.connection.prepare(query)?.query_map(parameters, read_step)?.collect::<Result<_, _>>()?)
    }

    /// The stages that ended with an earlier state than their last one, in order.
    ///
    /// # Errors
    /// SQLite cannot read them, or one has an unknown cause.
    pub fn stage_ends(&self) -> Result<Vec<StageEnd>, Error> {
        let query = "SELECT stage, step, generation, cause, reason, at FROM stage_ends ORDER BY number";
        let read_end = |row: &Row<'_>| {
            let cause = row.get_ref(3)?.as_str()?;
            let Some(cause) = EndCause::ALL.into_iter().find(|known| known.name() == cause) else {
                return Ok(Err(Error::Damaged(format!("a stage ended with the unknown cause {cause:?}"))));
            };
            let (position, generation) = (read_position(row, 0)?, read_u64(row, 2)?);
            Ok(Ok(StageEnd { position, generation, cause, reason: row.get(4)?, at: row.get(5)? }))
        };
        self.query_all(query, read_end)?.into_iter().collect()
    }

    /// The moves of the committed position by starts of generations, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn history_moves(&self) -> Result<Vec<HistoryMove>, Error> {
        let query = "SELECT generation, from_stage, from_step, to_stage, to_step FROM history_moves ORDER BY number";
        let read_move = |row: &Row<'_>| {
            let (from, to) = (read_position(row, 1)?, read_position(row, 3)?);
            Ok(HistoryMove { generation: read_u64(row, 0)?, from, to })
        };
        self.query_all(query, read_move)
    }

    /// The branch points: the starts of generations and the ends of stages. Each has the number of
    /// the first generation that continued from there. Steps of earlier generations beyond that
    /// position are not part of the present history.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn branch_points(&self) -> Result<BTreeSet<(u64, Position)>, Error> {
        let points = self.query_all("SELECT generation + 1, stage, step FROM cuts", |row| {
            Ok((read_u64(row, 0)?, read_position(row, 1)?))
        })?;
        Ok(points.into_iter().collect())
    }

    /// The stages that ended with an earlier checkpoint than their last, because the earlier one
    /// had the best score.
    ///
    /// # Errors
    /// As [`Self::stage_ends`].
    pub fn selections(&self) -> Result<BTreeSet<ModelSelection>, Error> {
        let ends = self.stage_ends()?.into_iter().filter(|end| end.cause != EndCause::Guard);
        Ok(ends.map(|StageEnd { position, generation, .. }| ModelSelection { position, generation }).collect())
    }

    /// The lineage, which decides for each row of a generation whether it belongs to the present
    /// history.
    ///
    /// # Errors
    /// As [`Self::stage_ends`].
    pub fn lineage(&self) -> Result<Lineage, Error> {
        Ok(Lineage::new(&self.branch_points()?, &self.selections()?))
    }

    /// The earliest position at which a generation began, or with which a stage ended early, since
    /// `cursor`; `None` if there is none. Steps beyond this position may have been given up since.
    /// Advances `cursor`.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn earliest_branch_point_since(&self, cursor: &mut LineageCursor) -> Result<Option<Position>, Error> {
        let query = "SELECT count(*) FROM generations UNION ALL SELECT count(*) FROM stage_ends";
        let counts = self.query_all(query, |row| read_u64(row, 0))?;
        let now = LineageCursor { generations: counts[0], ended_stages: counts[1] };
        let before = std::mem::replace(cursor, now);
        let query = "SELECT stage, step FROM (SELECT stage, step FROM generations ORDER BY number LIMIT -1 OFFSET ?)
            UNION ALL SELECT stage, step FROM (SELECT stage, step FROM stage_ends ORDER BY number LIMIT -1 OFFSET ?)
            ORDER BY 1, 2 LIMIT 1";
        let before = params![before.generations.cast_signed(), before.ended_stages.cast_signed()];
        Ok(self.connection.query_row(query, before, |row| read_position(row, 0)).optional()?)
    }
}

/// Parses the worker ids in the column `members_json`.
fn parse_worker_ids(members: &str) -> Vec<WorkerId> {
    let members: Vec<Value> = serde_json::from_str(members).unwrap_or_default();
    let worker_id = |member: &Value| u32::try_from(member.get("rank")?.as_u64()?).ok().map(WorkerId);
    members.iter().filter_map(worker_id).collect()
}
