//! Queries for the web page and for `coordinator events`. The web page's queries return a limited
//! number of rows, and find steps and captions by the index of their key, because they run while
//! the coordinator serves the run.

use std::{collections::BTreeMap, str::FromStr};

use dico_engine::{lineage::StateFate, plan::Position};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Error,
    queries::{IS_CURRENT, is_shown_sql, parse_metrics, read_position, read_u64},
    read_only::{Event, ReadOnlyJournal},
};
use crate::event_messages::{CHECKPOINT_KIND, GENERATION_KIND};

/// Maximal number of checkpoints among the latest events.
const MAX_CHECKPOINTS_AMONG_EVENTS: usize = 10;
/// Maximal number of references per image that are shown. An image may have a thousand.
const MAX_SHOWN_REFERENCES: usize = 32;
/// Maximal size of a shown reference, in bytes.
const MAX_REFERENCE_BYTES: usize = 2 << 10;

/// A recorded step with its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedStep {
    /// The position that the step reached.
    pub position: Position,
    /// The generation that trained it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// The scalars of the step, in the order of [`STEP_SCALARS`]; `None` if absent or not finite.
    pub scalars: [Option<f64>; STEP_SCALARS.len()],
    /// Distributions by name.
    pub summaries: BTreeMap<String, Distribution>,
}

/// The names of a step's scalars.
pub const STEP_SCALARS: [&str; 7] =
    ["loss", "learning_rate", "gradient_norm", "seconds", "all_reduce_seconds", "images_per_second", "lag_seconds"];

/// The mean and quantiles of a distribution; `None` if the distribution is empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// The mean.
    pub mean: Option<f64>,
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

/// Counters that grow with the journal's rows. A counter changes when there are new rows to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowCounters {
    /// Changes with events, generations and checkpoints.
    pub events: u64,
    /// Changes with evaluations.
    pub evaluations: u64,
}

/// A cursor of [`ReadOnlyJournal::events_since`]: for each of its four queries, the number or the
/// time of the last row that was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventCursor([f64; 4]);

/// The key of an evaluation. As text: `STAGE-STEP-GENERATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationId {
    /// The position at which the captioner was evaluated.
    pub position: Position,
    /// The last generation that generated captions for it.
    pub generation: u64,
}

impl FromStr for EvaluationId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = "an evaluation is named STAGE-STEP-GENERATION";
        let mut fields = text.split('-');
        let mut next = || fields.next()?.parse::<u64>().ok().filter(|number| i64::try_from(*number).is_ok());
        let (Some(stage), Some(step), Some(generation), None) = (next(), next(), next(), next()) else {
            return Err(error);
        };
        let stage = u32::try_from(stage).map_err(|_| error)?;
        Ok(Self { position: Position { stage, step }, generation })
    }
}

impl std::fmt::Display for EvaluationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { position: Position { stage, step }, generation } = self;
        write!(f, "{stage}-{step}-{generation}")
    }
}

/// An evaluation of a step that was not given up.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedEvaluation {
    /// The key of the evaluation.
    pub id: EvaluationId,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// Scores by name.
    pub metrics: BTreeMap<String, f64>,
    /// Whether the evaluated step belongs to the present history or was not selected.
    pub fate: StateFate,
}

/// A caption of an evaluation, with its scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoredCaption {
    /// The captioner's output.
    pub text: String,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
}

/// An image with its captions in two evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComparedImage {
    /// Its index among the images of the later evaluation, sorted by name.
    pub index: u64,
    /// The name of the image.
    pub image: String,
    /// The first reference captions; long ones are truncated.
    pub references: Vec<String>,
    /// The caption of the earlier evaluation; `None` if that evaluation does not have the image.
    pub before: Option<ScoredCaption>,
    /// The caption of the later evaluation.
    pub after: ScoredCaption,
}

impl ReadOnlyJournal {
    /// The first `max` steps beyond `after`, in the order of the run. Includes steps that were
    /// given up.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn step_records(&self, after: Position, max: usize) -> Result<Vec<RecordedStep>, Error> {
        let query =
            "SELECT stage, step, generation, at, loss, learning_rate, gradient_norm, seconds, all_reduce_seconds,
            samples / nullif(seconds, 0), lag_seconds, summaries_json
            FROM steps WHERE (stage, step) > (?, ?) ORDER BY stage, step, generation LIMIT ?";
        let read_step = |row: &Row<'_>| {
            let mut scalars = [None; STEP_SCALARS.len()];
            for (column, scalar) in (4..).zip(&mut scalars) {
                *scalar = row.get(column)?;
            }
            let summaries = row.get_ref(11)?.as_str()?;
            Ok(RecordedStep {
                position: read_position(row, 0)?,
                generation: read_u64(row, 2)?,
                at: row.get(3)?,
                scalars,
                summaries: serde_json::from_str(summaries).unwrap_or_default(),
            })
        };
        let parameters = params![after.stage, after.step.cast_signed(), max as i64];
        let mut statement = self.connection.prepare_cached(query)?;
        Ok(statement.query_map(parameters, read_step)?.collect::<Result<_, _>>()?)
    }

    /// The present counters of rows.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn row_counters(&self) -> Result<RowCounters, Error> {
        let query =
            "SELECT (SELECT ifnull(max(rowid), 0) FROM events) + (SELECT ifnull(max(number), 0) FROM generations)
            + (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM evaluations)";
        let read_counters =
            |row: &Row<'_>| Ok(RowCounters { events: read_u64(row, 0)?, evaluations: read_u64(row, 1)? });
        Ok(self.connection.query_row(query, [], read_counters)?)
    }

    /// The latest `max` events, newest first. Includes generations (as `generation`) and
    /// checkpoints (as `checkpoint`), but only the last ten checkpoints: in a run that saves often,
    /// they would displace all other events.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn latest_events(&self, max: usize) -> Result<Vec<Event>, Error> {
        let query = format!("SELECT at, kind, detail_json FROM events ORDER BY rowid DESC LIMIT {max}");
        let mut events = self.query_all(&query, |row| {
            let detail = serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default();
            Ok(Event { at: row.get(0)?, kind: row.get(1)?, detail })
        })?;
        let query = format!(
            "SELECT formed_at, number, cause, stage, step, json_array_length(members_json) FROM generations
            ORDER BY number DESC LIMIT {max}"
        );
        events.extend(self.query_all(&query, |row| {
            let Position { stage, step } = read_position(row, 3)?;
            let (number, cause, members) = (read_u64(row, 1)?, row.get::<_, String>(2)?, row.get::<_, i64>(5)?);
            let detail =
                json!({ "generation": number, "members": members, "cause": cause, "stage": stage, "step": step });
            Ok(Event { at: row.get(0)?, kind: GENERATION_KIND.into(), detail })
        })?);
        let query = format!("SELECT at, name FROM checkpoints ORDER BY at DESC LIMIT {MAX_CHECKPOINTS_AMONG_EVENTS}");
        events.extend(self.query_all(&query, |row| {
            let detail = json!({ "name": row.get::<_, String>(1)? });
            Ok(Event { at: row.get(0)?, kind: CHECKPOINT_KIND.into(), detail })
        })?);
        events.sort_by(|a, b| b.at.total_cmp(&a.at));
        events.truncate(max);
        Ok(events)
    }

    /// The events beyond `cursor`, in order of time. Includes all generations, checkpoints and
    /// evaluations, also those that were given up. Advances `cursor` to the last event.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn events_since(&self, cursor: &mut EventCursor) -> Result<Vec<Event>, Error> {
        let queries = [
            "SELECT at, rowid, kind, detail_json FROM events WHERE rowid > ?1 ORDER BY rowid",
            "SELECT formed_at, formed_at, 'generation', json_object('generation', number, 'members',
                json_array_length(members_json), 'cause', cause, 'stage', stage, 'step', step)
            FROM generations WHERE formed_at > ?1 ORDER BY formed_at",
            "SELECT at, at, 'checkpoint', json_object('stage', stage, 'step', step, 'name', name)
            FROM checkpoints WHERE at > ?1 ORDER BY at",
            "SELECT at, at, 'evaluation', json_object('stage', stage, 'step', step, 'metrics', json(metrics_json))
            FROM evaluations WHERE at > ?1 ORDER BY at",
        ];
        let mut events = Vec::new();
        for (query, last) in queries.into_iter().zip(&mut cursor.0) {
            let mut statement = self.connection.prepare_cached(query)?;
            let mut rows = statement.query([*last])?;
            while let Some(row) = rows.next()? {
                *last = row.get(1)?;
                let detail = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
                events.push(Event { at: row.get(0)?, kind: row.get(2)?, detail });
            }
        }
        events.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(events)
    }

    /// The last `max` evaluations of steps that were not given up, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn latest_evaluations(&self, max: usize) -> Result<Vec<RecordedEvaluation>, Error> {
        let query = format!(
            "SELECT stage, step, generation, at, metrics_json, {IS_CURRENT} FROM evaluations AS own WHERE {}
            ORDER BY stage DESC, step DESC, generation DESC LIMIT {max}",
            is_shown_sql()
        );
        let mut evaluations = self.query_all(&query, |row| {
            Ok(RecordedEvaluation {
                fate: if row.get(5)? { StateFate::Current } else { StateFate::NotSelected },
                id: EvaluationId { position: read_position(row, 0)?, generation: read_u64(row, 2)? },
                at: row.get(3)?,
                metrics: parse_metrics(&row.get::<_, String>(4)?),
            })
        })?;
        // If a position was evaluated more than once, the last evaluation counts.
        evaluations.dedup_by_key(|evaluated| evaluated.id.position);
        evaluations.reverse();
        Ok(evaluations)
    }

    /// The images `from..from + max` of the evaluation `after`, with their captions in `after` and
    /// in the earlier evaluation `before`. Also returns the number of images of `after`.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn compare_captions(
        &self,
        before: EvaluationId,
        after: EvaluationId,
        from: u64,
        max: u64,
    ) -> Result<(u64, Vec<ComparedImage>), Error> {
        let (generation, Position { stage, step }) = (after.generation.cast_signed(), after.position);
        let query = "SELECT count(*) FROM evaluation_items WHERE stage = ? AND step = ? AND generation = ?";
        let count =
            self.connection.query_row(query, params![stage, step.cast_signed(), generation], |row| read_u64(row, 0))?;
        let query =
            "SELECT own.image, own.references_json, own.caption, own.scores_json, other.caption, other.scores_json
            FROM evaluation_items AS own LEFT JOIN evaluation_items AS other
            ON (other.stage, other.step, other.generation, other.image) = (?, ?, ?, own.image)
            WHERE (own.stage, own.step, own.generation) = (?, ?, ?) ORDER BY own.image LIMIT ? OFFSET ?";
        let parameters = params![
            before.position.stage,
            before.position.step.cast_signed(),
            before.generation.cast_signed(),
            stage,
            step.cast_signed(),
            generation,
            max.cast_signed(),
            from.cast_signed()
        ];
        let read_image = |row: &Row<'_>| {
            let scores = |column| Ok::<_, rusqlite::Error>(parse_metrics(&row.get::<_, String>(column)?));
            let mut references: Vec<String> = serde_json::from_str(row.get_ref(1)?.as_str()?).unwrap_or_default();
            references.truncate(MAX_SHOWN_REFERENCES);
            for reference in &mut references {
                reference.truncate(reference.floor_char_boundary(MAX_REFERENCE_BYTES));
            }
            let before = match row.get::<_, Option<String>>(4)? {
                Some(text) => Some(ScoredCaption { text, scores: scores(5)? }),
                None => None,
            };
            Ok(ComparedImage {
                index: 0,
                image: row.get(0)?,
                references,
                before,
                after: ScoredCaption { text: row.get(2)?, scores: scores(3)? },
            })
        };
        let mut statement = self.connection.prepare(query)?;
        let mut items = statement.query_map(parameters, read_image)?.collect::<Result<Vec<_>, _>>()?;
        for (index, item) in (from..).zip(&mut items) {
            item.index = index;
        }
        Ok((count, items))
    }

    /// The name of an evaluation's image, by its index in the order of names.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn image_name(&self, evaluation: EvaluationId, index: u64) -> Result<Option<String>, Error> {
        let query = "SELECT image FROM evaluation_items WHERE stage = ? AND step = ? AND generation = ?
            ORDER BY image LIMIT 1 OFFSET ?";
        let EvaluationId { position: Position { stage, step }, generation } = evaluation;
        let parameters = params![stage, step.cast_signed(), generation.cast_signed(), index.cast_signed()];
        Ok(self.connection.query_row(query, parameters, |row| row.get(0)).optional()?)
    }
}
