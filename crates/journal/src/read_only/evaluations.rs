//! Evaluations: scores, captions, and the comparison of the captions of two evaluations.

use std::{collections::BTreeMap, str::FromStr};

use dico_engine::{lineage::StateFate, plan::Position};
use rusqlite::{OptionalExtension, Params, Row, params, params_from_iter};
use serde::Serialize;

use super::ReadOnlyJournal;
use crate::{
    Error,
    queries::{parse_metrics, read_position, read_u64},
};

/// Maximal number of references per image that a comparison has. An image may have a thousand.
const MAX_SHOWN_REFERENCES: usize = 32;
/// Maximal size of a reference in a comparison, in bytes.
const MAX_REFERENCE_BYTES: usize = 2 << 10;

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
pub struct Evaluation {
    /// The key of the evaluation.
    pub id: EvaluationId,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// Finite scores by name.
    pub scores: BTreeMap<String, f64>,
    /// Whether the evaluated step belongs to the present history or was not selected.
    pub fate: StateFate,
}

/// A caption of an evaluation, with its references.
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

impl EvaluationId {
    /// The key columns: stage, step and generation.
    fn columns(&self) -> [i64; 3] {
        [self.position.stage.into(), self.position.step.cast_signed(), self.generation.cast_signed()]
    }
}

impl ReadOnlyJournal {
    /// The evaluations of steps that were not given up and are beyond `after`, or all of them, in
    /// the order of the run. If a position was evaluated more than once, the last evaluation
    /// counts.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn evaluations(&self, after: Option<Position>) -> Result<Vec<Evaluation>, Error> {
        let (stage, step) = after.map_or((0, -1), |after| (after.stage, after.step.cast_signed()));
        let condition = "WHERE (stage, step) > (?, ?) ORDER BY stage, step, generation DESC";
        self.query_evaluations(condition, params![stage, step], usize::MAX)
    }

    /// The last `max` of [`Self::evaluations`], in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn latest_evaluations(&self, max: usize) -> Result<Vec<Evaluation>, Error> {
        let mut evaluations = self.query_evaluations("ORDER BY stage DESC, step DESC, generation DESC", [], max)?;
        evaluations.reverse();
        Ok(evaluations)
    }

    /// The first `max` evaluations that were not given up, in the order that `condition` (SQL)
    /// gives, one for each position.
    fn query_evaluations(
        &self,
        condition: &str,
        parameters: impl Params,
        max: usize,
    ) -> Result<Vec<Evaluation>, Error> {
        let lineage = self.lineage()?;
        let query = format!("SELECT stage, step, generation, at, metrics_json FROM evaluations {condition}");
        let mut statement = self.connection.prepare(&query)?;
        let (mut rows, mut evaluations) = (statement.query(parameters)?, Vec::<Evaluation>::new());
        while evaluations.len() < max
            && let Some(row) = rows.next()?
        {
            let id = EvaluationId { position: read_position(row, 0)?, generation: read_u64(row, 2)? };
            let fate = lineage.fate(id.position, id.generation);
            let is_repeated = evaluations.last().is_some_and(|last| last.id.position == id.position);
            if fate != StateFate::GivenUp && !is_repeated {
                let scores = parse_metrics(&row.get::<_, String>(4)?);
                evaluations.push(Evaluation { id, at: row.get(3)?, scores, fate });
            }
        }
        Ok(evaluations)
    }

    /// Up to `max` captions of an evaluation, spread evenly over its images in the order of names.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn captions(&self, evaluation: EvaluationId, max: u32) -> Result<Vec<Caption>, Error> {
        // Images 0, 1 * images / max, 2 * images / max, ..., rounded up.
        let query = "SELECT image, caption, references_json, scores_json FROM (
                SELECT *, row_number() OVER (ORDER BY image) - 1 AS number, count(*) OVER () AS images FROM evaluation_items
                WHERE (stage, step, generation) = (?1, ?2, ?3))
            WHERE number = 0 OR number * ?4 / images > (number - 1) * ?4 / images ORDER BY image";
        let [stage, step, generation] = evaluation.columns();
        let parameters = params![stage, step, generation, max];
        Ok(self.connection.prepare(query)?.query_map(parameters, read_caption)?.collect::<Result<_, _>>()?)
    }

    /// The caption of an image in an evaluation; `None` if the evaluation does not have the image.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn caption(&self, evaluation: EvaluationId, image: &str) -> Result<Option<Caption>, Error> {
        let query = "SELECT image, caption, references_json, scores_json FROM evaluation_items
            WHERE (stage, step, generation, image) = (?, ?, ?, ?)";
        let [stage, step, generation] = evaluation.columns();
        Ok(self.connection.query_row(query, params![stage, step, generation, image], read_caption).optional()?)
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
        let query = "SELECT count(*) FROM evaluation_items WHERE (stage, step, generation) = (?, ?, ?)";
        let count = self.connection.query_row(query, after.columns(), |row| read_u64(row, 0))?;
        let query =
            "SELECT own.image, own.references_json, own.caption, own.scores_json, other.caption, other.scores_json
            FROM evaluation_items AS own LEFT JOIN evaluation_items AS other
            ON (other.stage, other.step, other.generation, other.image) = (?, ?, ?, own.image)
            WHERE (own.stage, own.step, own.generation) = (?, ?, ?) ORDER BY own.image LIMIT ? OFFSET ?";
        let limits = [max, from].map(u64::cast_signed);
        let parameters = [&before.columns()[..], &after.columns(), &limits].concat();
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
        let mut items =
            statement.query_map(params_from_iter(parameters), read_image)?.collect::<Result<Vec<_>, _>>()?;
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
        let query = "SELECT image FROM evaluation_items WHERE (stage, step, generation) = (?, ?, ?)
            ORDER BY image LIMIT 1 OFFSET ?";
        let [stage, step, generation] = evaluation.columns();
        let parameters = [stage, step, generation, index.cast_signed()];
        Ok(self.connection.query_row(query, parameters, |row| row.get(0)).optional()?)
    }
}

fn read_caption(row: &Row<'_>) -> rusqlite::Result<Caption> {
    Ok(Caption {
        image: row.get(0)?,
        caption: row.get(1)?,
        references: serde_json::from_str(row.get_ref(2)?.as_str()?).unwrap_or_default(),
        scores: parse_metrics(row.get_ref(3)?.as_str()?),
    })
}
