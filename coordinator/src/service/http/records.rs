//! Handlers that answer with records of the journal: events, evaluations and captions.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{Json, extract::State, http::StatusCode, response::IntoResponse};
use dico_engine::lineage::StateFate;
use journal::{ComparedImage, EvaluationId, Event};
use metric_catalogue::Direction;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{app_state::AppState, error::HttpError, limits::QueryParameters};

/// Maximal number of events in an answer.
const MAX_EVENTS: usize = 100;
/// Maximal number of evaluations in an answer.
const MAX_EVALUATIONS: usize = 1000;
/// Maximal number of captions in an answer.
const MAX_CAPTIONS: u64 = 12;

/// `GET /api/events`.
pub async fn events(State(app_state): State<Arc<AppState>>) -> Result<impl IntoResponse, HttpError> {
    let events = app_state.journal.query(|journal| journal.latest_events(MAX_EVENTS)).await?;
    let to_json = |Event { at, kind, detail }: Event| json!({ "at": at, "kind": kind, "detail": detail });
    Ok(Json(events.into_iter().map(to_json).collect::<Vec<_>>()))
}

/// The last evaluations, in the order of the run.
#[derive(Debug, Serialize)]
pub struct Evaluations {
    evaluations: Vec<Evaluation>,
    /// For each metric, whether a `higher` or a `lower` score is better. Metrics without a better
    /// direction are absent.
    better: BTreeMap<String, &'static str>,
}

#[derive(Debug, Serialize)]
struct Evaluation {
    id: String,
    stage: u32,
    step: u64,
    /// When it was recorded, in Unix seconds.
    at: f64,
    /// Scores by metric.
    metrics: BTreeMap<String, f64>,
    /// Whether the stage ended with the checkpoint of an earlier step than this one.
    not_selected: bool,
}

/// `GET /api/evaluations`.
pub async fn evaluations(State(app_state): State<Arc<AppState>>) -> Result<impl IntoResponse, HttpError> {
    let evaluations = app_state.journal.query(|journal| journal.latest_evaluations(MAX_EVALUATIONS)).await?;
    let to_evaluation = |recorded: journal::Evaluation| Evaluation {
        id: recorded.id.to_string(),
        stage: recorded.id.position.stage,
        step: recorded.id.position.step,
        at: recorded.at,
        metrics: recorded.scores,
        not_selected: recorded.fate == StateFate::NotSelected,
    };
    let names: BTreeSet<&String> = evaluations.iter().flat_map(|recorded| recorded.scores.keys()).collect();
    let better = names.into_iter().filter_map(|name| match metric_catalogue::direction(name) {
        Direction::HigherIsBetter => Some((name.clone(), "higher")),
        Direction::LowerIsBetter => Some((name.clone(), "lower")),
        Direction::Neutral => None,
    });
    let better = better.collect();
    let evaluations = evaluations.into_iter().map(to_evaluation).collect();
    Ok(Json(Evaluations { evaluations, better }))
}

/// The query parameters of `GET /api/captions`.
#[derive(Deserialize)]
pub struct CaptionsQuery {
    /// The id of an evaluation.
    before: String,
    /// The id of the evaluation that is compared with it, and whose images are listed.
    after: String,
    /// The index of the first image.
    #[serde(default)]
    offset: u32,
}

/// The captions of two evaluations side by side.
#[derive(Debug, Serialize)]
pub struct Captions {
    /// The number of images of the evaluation `after`.
    images: u64,
    items: Vec<ComparedImage>,
}

/// `GET /api/captions`.
pub async fn captions(
    State(app_state): State<Arc<AppState>>,
    QueryParameters(query): QueryParameters<CaptionsQuery>,
) -> Result<impl IntoResponse, HttpError> {
    let (before, after) = (parse_evaluation_id(&query.before)?, parse_evaluation_id(&query.after)?);
    let offset = query.offset.into();
    let captions =
        app_state.journal.query(move |journal| journal.compare_captions(before, after, offset, MAX_CAPTIONS)).await?;
    let (images, items) = captions;
    Ok(Json(Captions { images, items }))
}

/// Parses the id of an evaluation.
pub fn parse_evaluation_id(text: &str) -> Result<EvaluationId, HttpError> {
    text.parse().map_err(|error: <EvaluationId as std::str::FromStr>::Err| {
        HttpError::new(StatusCode::BAD_REQUEST, error.to_string())
    })
}
