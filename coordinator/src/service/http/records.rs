//! Events, evaluations and captions, as the journal has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde::{Deserialize, Serialize};
use serde_json::json;
use statistics::names::{self, Better};

use super::{Desk, Problem, limits::QueryParameters};
use crate::{
    journal::browse::{Compared, EvaluationId},
    run::cuts::Fate,
};

/// Events that are told.
const MOST_EVENTS: usize = 100;
/// Evaluations that are told.
const MOST_EVALUATIONS: usize = 1000;
/// Captions that are told at once.
const MOST_CAPTIONS: u64 = 12;

/// `GET /api/events`.
pub async fn events(State(desk): State<Arc<Desk>>) -> Result<impl IntoResponse, Problem> {
    let events = desk.journal.ask(|history| history.latest_events(MOST_EVENTS)).await?;
    let event =
        |event: crate::journal::history::Event| json!({ "at": event.at, "kind": event.kind, "detail": event.detail });
    Ok(Json(events.into_iter().map(event).collect::<Vec<_>>()))
}

/// Evaluations in the order of the run.
#[derive(Debug, Serialize)]
pub struct Evaluations {
    evaluations: Vec<Evaluation>,
    /// Which scores are good: `higher`, `lower`; the others only describe.
    better: BTreeMap<String, &'static str>,
}

#[derive(Debug, Serialize)]
struct Evaluation {
    id: String,
    stage: u32,
    step: u64,
    at: f64,
    metrics: BTreeMap<String, f64>,
    /// Whether it is of a state that was trained beyond the one that its stage ended with.
    not_selected: bool,
}

/// `GET /api/evaluations`.
pub async fn evaluations(State(desk): State<Arc<Desk>>) -> Result<impl IntoResponse, Problem> {
    let evaluations = desk.journal.ask(|history| history.latest_evaluations(MOST_EVALUATIONS)).await?;
    let evaluation = |evaluated: crate::journal::browse::Evaluated| Evaluation {
        id: evaluated.id.to_string(),
        stage: evaluated.id.place.stage,
        step: evaluated.id.place.step,
        at: evaluated.at,
        metrics: evaluated.metrics,
        not_selected: evaluated.fate == Fate::NotSelected,
    };
    let names: BTreeSet<&String> = evaluations.iter().flat_map(|evaluated| evaluated.metrics.keys()).collect();
    let better = names.into_iter().filter_map(|name| match names::better(name) {
        Better::Higher => Some((name.clone(), "higher")),
        Better::Lower => Some((name.clone(), "lower")),
        Better::Neither => None,
    });
    let better = better.collect();
    let evaluations = evaluations.into_iter().map(evaluation).collect();
    Ok(Json(Evaluations { evaluations, better }))
}

/// Which captions are asked for.
#[derive(Deserialize)]
pub struct Asked {
    before: String,
    after: String,
    #[serde(default)]
    from: u32,
}

/// Captions of two evaluations side by side.
#[derive(Debug, Serialize)]
pub struct Captions {
    /// How many images the later evaluation has.
    images: u64,
    items: Vec<Compared>,
}

/// `GET /api/captions`.
pub async fn captions(
    State(desk): State<Arc<Desk>>,
    QueryParameters(asked): QueryParameters<Asked>,
) -> Result<impl IntoResponse, Problem> {
    let (before, after) = (evaluation(&asked.before)?, evaluation(&asked.after)?);
    let from = asked.from.into();
    let captions = desk.journal.ask(move |history| history.compare(before, after, from, MOST_CAPTIONS)).await?;
    let (images, items) = captions;
    Ok(Json(Captions { images, items }))
}

/// Reads what a client calls an evaluation.
pub fn evaluation(text: &str) -> Result<EvaluationId, Problem> {
    text.parse().map_err(|why: &str| Problem::new(StatusCode::BAD_REQUEST, why))
}
