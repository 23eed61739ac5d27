//! Handlers for events, evaluations and captions from the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use serde::{Deserialize, Serialize};
use serde_json::json;
use statistics::names::{self, Better};

use super::{AppState, Problem, limits::QueryParameters};
use crate::{
    journal::browse::{Compared, EvaluationId},
    run::lineage::StateFate,
};

/// Maximal number of events in an answer.
const MAX_EVENTS: usize = 100;
/// Maximal number of evaluations in an answer.
const MAX_EVALUATIONS: usize = 1000;
/// Maximal number of captions in an answer.
const MAX_CAPTIONS: u64 = 12;

/// `GET /api/events`.
pub async fn events(State(desk): State<Arc<AppState>>) -> Result<impl IntoResponse, Problem> {
    let events = desk.journal.ask(|history| history.latest_events(MAX_EVENTS)).await?;
    let event =
        |event: crate::journal::history::Event| json!({ "at": event.at, "kind": event.kind, "detail": event.detail });
    Ok(Json(events.into_iter().map(event).collect::<Vec<_>>()))
}

/// All evaluations in the order of the run.
#[derive(Debug, Serialize)]
pub struct Evaluations {
    evaluations: Vec<Evaluation>,
    /// The better direction of each score, `higher` or `lower`; scores that only describe are
    /// absent.
    better: BTreeMap<String, &'static str>,
}

#[derive(Debug, Serialize)]
struct Evaluation {
    id: String,
    stage: u32,
    step: u64,
    at: f64,
    metrics: BTreeMap<String, f64>,
    /// Whether the state was trained beyond the one that its stage ended with.
    not_selected: bool,
}

/// `GET /api/evaluations`.
pub async fn evaluations(State(desk): State<Arc<AppState>>) -> Result<impl IntoResponse, Problem> {
    let evaluations = desk.journal.ask(|history| history.latest_evaluations(MAX_EVALUATIONS)).await?;
    let evaluation = |evaluated: crate::journal::browse::Evaluated| Evaluation {
        id: evaluated.id.to_string(),
        stage: evaluated.id.place.stage,
        step: evaluated.id.place.step,
        at: evaluated.at,
        metrics: evaluated.metrics,
        not_selected: evaluated.fate == StateFate::NotSelected,
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

/// The query parameters of `GET /api/captions`.
#[derive(Deserialize)]
pub struct CaptionsQuery {
    before: String,
    after: String,
    #[serde(default)]
    from: u32,
}

/// The captions of two evaluations side by side.
#[derive(Debug, Serialize)]
pub struct Captions {
    /// The number of images of the later evaluation.
    images: u64,
    items: Vec<Compared>,
}

/// `GET /api/captions`.
pub async fn captions(
    State(desk): State<Arc<AppState>>,
    QueryParameters(asked): QueryParameters<CaptionsQuery>,
) -> Result<impl IntoResponse, Problem> {
    let (before, after) = (evaluation(&asked.before)?, evaluation(&asked.after)?);
    let from = asked.from.into();
    let captions = desk.journal.ask(move |history| history.compare(before, after, from, MAX_CAPTIONS)).await?;
    let (images, items) = captions;
    Ok(Json(Captions { images, items }))
}

/// Parses the key of an evaluation.
pub fn evaluation(text: &str) -> Result<EvaluationId, Problem> {
    text.parse().map_err(|why: &str| Problem::new(StatusCode::BAD_REQUEST, why))
}
