//! Queries for the report and the TensorBoard export: steps, evaluations with their captions, and
//! checkpoints. The results leave out steps that were given up, with their evaluations and
//! checkpoints.

use std::collections::BTreeMap;

use dico_engine::{WorkerId, plan::Position};
use metric_catalogue::names;
use rusqlite::{OptionalExtension, Row, params};
use serde::Deserialize;

use super::ReadOnlyJournal;
use crate::journal::{
    Error,
    queries::{IS_CURRENT, IS_LAST_OF_STAGE_ENDED_EARLY, is_shown_sql, parse_metrics, read_position, read_u64},
};

/// Distributions that are reported by their quantiles, with the names of the quantiles.
const QUANTILE_NAMES: [(&str, [&str; 5]); 2] = [
    (
        names::REWARD_CHOSEN,
        ["reward_chosen_p05", "reward_chosen_p25", "reward_chosen_p50", "reward_chosen_p75", "reward_chosen_p95"],
    ),
    (
        names::REWARD_REJECTED,
        [
            "reward_rejected_p05",
            "reward_rejected_p25",
            "reward_rejected_p50",
            "reward_rejected_p75",
            "reward_rejected_p95",
        ],
    ),
];
/// Distributions that are reported by their means.
const MEAN_NAMES: [&str; 6] = [
    names::REWARD_MARGIN,
    names::IMPLICIT_ACCURACY,
    names::KL,
    names::GAMMA_ENTROPY,
    names::CAPTION_LENGTH,
    names::REPETITION,
];

/// A step and its finite measurements, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct MeasuredStep {
    /// The position that the step reached.
    pub position: Position,
    /// The generation that trained it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// The number of samples that it trained on.
    pub samples: u64,
    /// Metrics of training: `loss`, `learning_rate`, `reward_chosen_p50` and so on.
    pub training_metrics: Vec<(&'static str, f64)>,
    /// Metrics of speed: `step_seconds`, `images_per_second` and so on.
    pub speed_metrics: Vec<(&'static str, f64)>,
}

/// An evaluation and its scores.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The position at which the captioner was evaluated.
    pub position: Position,
    /// The last generation that generated captions for it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// Finite scores by name.
    pub scores: BTreeMap<String, f64>,
}

/// A caption of an evaluation.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    /// The name of the image.
    pub image: String,
    /// The captioner's output.
    pub caption: String,
    /// The reference captions.
    pub references: Vec<String>,
    /// Finite scores of this caption by name.
    pub scores: BTreeMap<String, f64>,
}

/// A checkpoint that was not deleted, with the columns that the report shows.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointRow {
    /// The position at which it was saved.
    pub position: Position,
    /// Its name.
    pub name: String,
    /// The SHA-256 (hex) of its parameters.
    pub parameters_sha256: String,
    /// When it was complete, in Unix seconds.
    pub at: f64,
    /// Whether the run may resume from it. False for the last checkpoint of a stage that ended with
    /// an earlier one: the last checkpoint is kept only for the user.
    pub is_in_present_history: bool,
}

/// A distribution as stored in the journal.
#[derive(Deserialize)]
struct Distribution {
    count: u64,
    mean: Option<f64>,
    p05: Option<f64>,
    p25: Option<f64>,
    p50: Option<f64>,
    p75: Option<f64>,
    p95: Option<f64>,
}

impl ReadOnlyJournal {
    /// Calls `handle_step` with each step beyond `after`, in the order of the run. Does not return
    /// a list, because all steps may not fit into memory.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn for_each_step(&self, after: Position, mut handle_step: impl FnMut(MeasuredStep)) -> Result<(), Error> {
        let query = format!(
            "SELECT stage, step, generation, at, samples, loss, learning_rate, gradient_norm, seconds, all_reduce_seconds,
            lag_seconds, summaries_json FROM steps AS own
            WHERE (stage, step) > (?, ?) AND {} ORDER BY stage, step, generation",
            is_shown_sql()
        );
        let mut statement = self.connection.prepare(&query)?;
        let mut rows = statement.query(params![after.stage, after.step.cast_signed()])?;
        while let Some(row) = rows.next()? {
            handle_step(read_step(row)?);
        }
        Ok(())
    }

    /// The evaluations beyond `after`, or all of them, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn evaluations(&self, after: Option<Position>) -> Result<Vec<Evaluation>, Error> {
        let query = format!(
            "SELECT stage, step, generation, at, metrics_json FROM evaluations AS own
            WHERE (stage, step) > (?, ?) AND {} ORDER BY stage, step, generation",
            is_shown_sql()
        );
        let read_evaluation = |row: &Row<'_>| {
            let scores = parse_metrics(&row.get::<_, String>(4)?);
            Ok(Evaluation { position: read_position(row, 0)?, generation: read_u64(row, 2)?, at: row.get(3)?, scores })
        };
        let (stage, step) = after.map_or((0, -1), |after| (after.stage, after.step.cast_signed()));
        Ok(self
            .connection
            .prepare(&query)?
            .query_map(params![stage, step], read_evaluation)?
            .collect::<Result<_, _>>()?)
    }

    /// Up to `max` captions of an evaluation, spread evenly over its images in the order of names.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn captions(&self, evaluation: &Evaluation, max: u32) -> Result<Vec<Caption>, Error> {
        // Images 0, 1 * images / max, 2 * images / max, ..., rounded up.
        let query = "SELECT image, caption, references_json, scores_json FROM (
                SELECT *, row_number() OVER (ORDER BY image) - 1 AS number, count(*) OVER () AS images FROM evaluation_items
                WHERE (stage, step, generation) = (?1, ?2, ?3))
            WHERE number = 0 OR number * ?4 / images > (number - 1) * ?4 / images ORDER BY image";
        let Evaluation { position, generation, .. } = evaluation;
        let key = params![position.stage, position.step.cast_signed(), generation.cast_signed(), max];
        Ok(self.connection.prepare(query)?.query_map(key, read_caption)?.collect::<Result<_, _>>()?)
    }

    /// The caption of an image in an evaluation; `None` if the evaluation does not have the image.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn caption(&self, evaluation: &Evaluation, image: &str) -> Result<Option<Caption>, Error> {
        let query = "SELECT image, caption, references_json, scores_json FROM evaluation_items
            WHERE (stage, step, generation, image) = (?, ?, ?, ?)";
        let Evaluation { position, generation, .. } = evaluation;
        let key = params![position.stage, position.step.cast_signed(), generation.cast_signed(), image];
        Ok(self.connection.query_row(query, key, read_caption).optional()?)
    }

    /// The checkpoints that were not deleted and are of the present history, or are the last ones
    /// of stages that ended with an earlier one; in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn checkpoints(&self) -> Result<Vec<CheckpointRow>, Error> {
        let query = format!(
            "SELECT stage, step, name, parameters_sha256, at, {IS_CURRENT} FROM checkpoints AS own
            WHERE deleted IS NULL AND ({IS_CURRENT} OR {IS_LAST_OF_STAGE_ENDED_EARLY}) ORDER BY stage, step"
        );
        self.query_all(&query, |row| {
            Ok(CheckpointRow {
                position: read_position(row, 0)?,
                name: row.get(2)?,
                parameters_sha256: row.get(3)?,
                at: row.get(4)?,
                is_in_present_history: row.get(5)?,
            })
        })
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

    /// When the run was created, in Unix seconds.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn created_at(&self) -> Result<f64, Error> {
        Ok(self.connection.query_row("SELECT created FROM run", [], |row| row.get(0))?)
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

/// A cursor of [`ReadOnlyJournal::earliest_branch_point_since`]: how many generations, and how many
/// stages that ended early, the caller has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LineageCursor {
    generations: u64,
    ended_stages: u64,
}

fn read_step(row: &Row<'_>) -> rusqlite::Result<MeasuredStep> {
    let number = |column| row.get::<_, Option<f64>>(column);
    let (samples, seconds) = (read_u64(row, 4)?, number(8)?);
    let images_per_second = seconds.filter(|seconds| *seconds > 0.0).map(|seconds| samples as f64 / seconds);
    let mut summaries: BTreeMap<String, Distribution> =
        serde_json::from_str(&row.get::<_, String>(11)?).unwrap_or_default();
    summaries.retain(|_, distribution| distribution.count > 0);
    let mut training_metrics = vec![("loss", number(5)?), ("learning_rate", number(6)?), ("gradient_norm", number(7)?)];
    for (name, quantiles) in QUANTILE_NAMES {
        if let Some(Distribution { p05, p25, p50, p75, p95, .. }) = summaries.get(name) {
            training_metrics.extend(quantiles.into_iter().zip([*p05, *p25, *p50, *p75, *p95]));
        }
    }
    training_metrics.extend(MEAN_NAMES.into_iter().filter_map(|name| Some((name, summaries.get(name)?.mean))));
    let speed_metrics = vec![
        ("images_per_second", images_per_second),
        ("step_seconds", seconds),
        ("all_reduce_seconds", number(9)?),
        ("lag_seconds", number(10)?),
    ];
    let finite = |values: Vec<(&'static str, Option<f64>)>| {
        let values = values.into_iter().filter_map(|(name, value)| Some((name, value?)));
        values.filter(|(_, value)| value.is_finite()).collect()
    };
    Ok(MeasuredStep {
        position: read_position(row, 0)?,
        generation: read_u64(row, 2)?,
        at: row.get(3)?,
        samples,
        training_metrics: finite(training_metrics),
        speed_metrics: finite(speed_metrics),
    })
}

fn read_caption(row: &Row<'_>) -> rusqlite::Result<Caption> {
    Ok(Caption {
        image: row.get(0)?,
        caption: row.get(1)?,
        references: serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default(),
        scores: parse_metrics(&row.get::<_, String>(3)?),
    })
}
