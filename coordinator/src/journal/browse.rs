//! Queries for a live view of a run: parts of the journal of limited size, found by its indices.

use std::{collections::BTreeMap, str::FromStr};

use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Error, PRESENT,
    history::{Event, History},
    is_shown, metrics, place, unsigned,
};
use crate::{
    happened::{CHECKPOINT, GENERATION},
    run::{lineage::StateFate, plan::Place},
};

/// Maximal number of checkpoints among the events.
const MAX_CHECKPOINTS: usize = 10;
/// Maximal number of references per image that are shown; an image may have a thousand.
const MAX_SHOWN_REFERENCES: usize = 32;
/// Maximal size of a shown reference, in bytes.
const MAX_SHOWN_BYTES: usize = 2 << 10;

/// The report of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// The point that the step reached.
    pub place: Place,
    /// The generation that trained it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// The numbers of the whole step, in the order of [`NUMBERS`]; none for one that is not finite.
    pub numbers: [Option<f64>; NUMBERS.len()],
    /// Distributions by name.
    pub summaries: BTreeMap<String, Distribution>,
}

/// The names of a step's numbers.
pub const NUMBERS: [&str; 7] =
    ["loss", "learning_rate", "gradient_norm", "seconds", "all_reduce_seconds", "images_per_second", "lag_seconds"];

/// The mean and quantiles of a distribution.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Distribution {
    /// The mean; none if the distribution is empty.
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

/// Counters of the journal's rows: they change when there is something new to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowCounters {
    /// Events, generations and checkpoints.
    pub events: u64,
    /// Evaluations.
    pub evaluations: u64,
}

/// A cursor of [`History::happened`]: the number or the time of the last row read from each of its
/// tables.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventCursor([f64; 4]);

/// The key of an evaluation. As text: `STAGE-STEP-GENERATION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationId {
    /// The state that was evaluated.
    pub place: Place,
    /// The last generation that took part.
    pub generation: u64,
}

impl FromStr for EvaluationId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "an evaluation is named STAGE-STEP-GENERATION";
        let mut parts = text.split('-');
        let mut next = || parts.next()?.parse::<u64>().ok().filter(|part| i64::try_from(*part).is_ok());
        let (Some(stage), Some(step), Some(generation), None) = (next(), next(), next(), next()) else {
            return Err(wrong);
        };
        let stage = u32::try_from(stage).map_err(|_| wrong)?;
        Ok(Self { place: Place { stage, step }, generation })
    }
}

impl std::fmt::Display for EvaluationId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { place: Place { stage, step }, generation } = self;
        write!(f, "{stage}-{step}-{generation}")
    }
}

/// An evaluation whose state was not given up.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// The key.
    pub id: EvaluationId,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// Scores by name.
    pub metrics: BTreeMap<String, f64>,
    /// The fate of the evaluated state.
    pub fate: StateFate,
}

/// A caption of an evaluation, with its scores.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Caption {
    /// The captioner's output.
    pub text: String,
    /// Scores by name.
    pub scores: BTreeMap<String, f64>,
}

/// An image in two evaluations.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Its index among the images of the later evaluation, sorted by name.
    pub index: u64,
    /// The name of the image.
    pub image: String,
    /// The reference captions, as far as they are shown.
    pub references: Vec<String>,
    /// The caption of the earlier evaluation; none if it does not have the image.
    pub before: Option<Caption>,
    /// The caption of the later evaluation.
    pub after: Caption,
}

impl History {
    /// The first `most` steps beyond `after`, in the order of the run; includes steps that were
    /// given up.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn recorded(&self, after: Place, most: usize) -> Result<Vec<Recorded>, Error> {
        let query =
            "SELECT stage, step, generation, at, loss, learning_rate, gradient_norm, seconds, all_reduce_seconds,
            samples / nullif(seconds, 0), lag_seconds, summaries_json
            FROM steps WHERE (stage, step) > (?, ?) ORDER BY stage, step, generation LIMIT ?";
        let recorded = |row: &Row<'_>| {
            let mut numbers = [None; NUMBERS.len()];
            for (column, number) in (4..).zip(&mut numbers) {
                *number = row.get(column)?;
            }
            let summaries = row.get_ref(11)?.as_str()?;
            Ok(Recorded {
                place: place(row, 0)?,
                generation: unsigned(row, 2)?,
                at: row.get(3)?,
                numbers,
                summaries: serde_json::from_str(summaries).unwrap_or_default(),
            })
        };
        let bounds = params![after.stage, after.step.cast_signed(), most as i64];
        let mut statement = self.connection.prepare_cached(query)?;
        Ok(statement.query_map(bounds, recorded)?.collect::<Result<_, _>>()?)
    }

    /// The present counters of the journal.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn marks(&self) -> Result<RowCounters, Error> {
        let query =
            "SELECT (SELECT ifnull(max(rowid), 0) FROM events) + (SELECT ifnull(max(number), 0) FROM generations)
            + (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM evaluations)";
        let marks = |row: &Row<'_>| Ok(RowCounters { events: unsigned(row, 0)?, evaluations: unsigned(row, 1)? });
        Ok(self.connection.query_row(query, [], marks)?)
    }

    /// The latest `most` events, newest first. Includes generations (as `generation`) and the last
    /// checkpoints (as `checkpoint`; no more, because they would crowd out the rest).
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn latest_events(&self, most: usize) -> Result<Vec<Event>, Error> {
        let query = format!("SELECT at, kind, detail_json FROM events ORDER BY rowid DESC LIMIT {most}");
        let mut events = self.all(&query, |row| {
            let detail = serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default();
            Ok(Event { at: row.get(0)?, kind: row.get(1)?, detail })
        })?;
        let query = format!(
            "SELECT formed_at, number, cause, stage, step, json_array_length(members_json) FROM generations
            ORDER BY number DESC LIMIT {most}"
        );
        events.extend(self.all(&query, |row| {
            let Place { stage, step } = place(row, 3)?;
            let (number, cause, members) = (unsigned(row, 1)?, row.get::<_, String>(2)?, row.get::<_, i64>(5)?);
            let detail =
                json!({ "generation": number, "members": members, "cause": cause, "stage": stage, "step": step });
            Ok(Event { at: row.get(0)?, kind: GENERATION.into(), detail })
        })?);
        let query = format!("SELECT at, name FROM checkpoints ORDER BY at DESC LIMIT {MAX_CHECKPOINTS}");
        events.extend(self.all(&query, |row| {
            let detail = json!({ "name": row.get::<_, String>(1)? });
            Ok(Event { at: row.get(0)?, kind: CHECKPOINT.into(), detail })
        })?);
        events.sort_by(|a, b| b.at.total_cmp(&a.at));
        events.truncate(most);
        Ok(events)
    }

    /// The events since `known`, in order of time. Includes generations, checkpoints and
    /// evaluations, given up or not. Moves `known` to the last of them.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn happened(&self, known: &mut EventCursor) -> Result<Vec<Event>, Error> {
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
        let mut happened = Vec::new();
        for (query, last) in queries.into_iter().zip(&mut known.0) {
            let mut statement = self.connection.prepare_cached(query)?;
            let mut rows = statement.query([*last])?;
            while let Some(row) = rows.next()? {
                *last = row.get(1)?;
                let detail = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
                happened.push(Event { at: row.get(0)?, kind: row.get(2)?, detail });
            }
        }
        happened.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(happened)
    }

    /// The last `most` evaluations whose states were not given up, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn latest_evaluations(&self, most: usize) -> Result<Vec<Evaluated>, Error> {
        let query = format!(
            "SELECT stage, step, generation, at, metrics_json, {PRESENT} FROM evaluations AS own WHERE {}
            ORDER BY stage DESC, step DESC, generation DESC LIMIT {most}",
            is_shown()
        );
        let mut evaluations = self.all(&query, |row| {
            Ok(Evaluated {
                fate: if row.get(5)? { StateFate::Current } else { StateFate::NotSelected },
                id: EvaluationId { place: place(row, 0)?, generation: unsigned(row, 2)? },
                at: row.get(3)?,
                metrics: metrics(&row.get::<_, String>(4)?),
            })
        })?;
        // If a state was evaluated more than once, the last evaluation counts.
        evaluations.dedup_by_key(|evaluated| evaluated.id.place);
        evaluations.reverse();
        Ok(evaluations)
    }

    /// The images `from..from + most` of an evaluation, with their captions in an earlier
    /// evaluation; and the number of images of the evaluation.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn compare(
        &self,
        before: EvaluationId,
        after: EvaluationId,
        from: u64,
        most: u64,
    ) -> Result<(u64, Vec<Compared>), Error> {
        let (of, Place { stage, step }) = (after.generation.cast_signed(), after.place);
        let query = "SELECT count(*) FROM evaluation_items WHERE stage = ? AND step = ? AND generation = ?";
        let count = self.connection.query_row(query, params![stage, step.cast_signed(), of], |row| unsigned(row, 0))?;
        let query =
            "SELECT own.image, own.references_json, own.caption, own.scores_json, other.caption, other.scores_json
            FROM evaluation_items AS own LEFT JOIN evaluation_items AS other
            ON (other.stage, other.step, other.generation, other.image) = (?, ?, ?, own.image)
            WHERE (own.stage, own.step, own.generation) = (?, ?, ?) ORDER BY own.image LIMIT ? OFFSET ?";
        let bounds = params![
            before.place.stage,
            before.place.step.cast_signed(),
            before.generation.cast_signed(),
            stage,
            step.cast_signed(),
            of,
            most.cast_signed(),
            from.cast_signed()
        ];
        let compared = |row: &Row<'_>| {
            let scores = |column| Ok::<_, rusqlite::Error>(metrics(&row.get::<_, String>(column)?));
            let mut references: Vec<String> = serde_json::from_str(row.get_ref(1)?.as_str()?).unwrap_or_default();
            references.truncate(MAX_SHOWN_REFERENCES);
            for reference in &mut references {
                reference.truncate(reference.floor_char_boundary(MAX_SHOWN_BYTES));
            }
            let before = match row.get::<_, Option<String>>(4)? {
                Some(text) => Some(Caption { text, scores: scores(5)? }),
                None => None,
            };
            Ok(Compared {
                index: 0,
                image: row.get(0)?,
                references,
                before,
                after: Caption { text: row.get(2)?, scores: scores(3)? },
            })
        };
        let mut statement = self.connection.prepare(query)?;
        let mut items = statement.query_map(bounds, compared)?.collect::<Result<Vec<_>, _>>()?;
        for (index, item) in (from..).zip(&mut items) {
            item.index = index;
        }
        Ok((count, items))
    }

    /// The name of an evaluation's image, by its index in the order of names.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn image(&self, evaluation: EvaluationId, index: u64) -> Result<Option<String>, Error> {
        let query = "SELECT image FROM evaluation_items WHERE stage = ? AND step = ? AND generation = ?
            ORDER BY image LIMIT 1 OFFSET ?";
        let EvaluationId { place: Place { stage, step }, generation } = evaluation;
        let bounds = params![stage, step.cast_signed(), generation.cast_signed(), index.cast_signed()];
        Ok(self.connection.query_row(query, bounds, |row| row.get(0)).optional()?)
    }
}
