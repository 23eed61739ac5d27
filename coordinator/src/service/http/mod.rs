//! The HTTP server of the coordinator: metrics for Prometheus, liveness and readiness probes, and
//! the page with its API.
//!
//! | path | |
//! |---|---|
//! | `GET /metrics`, `/healthz`, `/readyz` | for Prometheus and probes |
//! | `GET /`, `/page/...` | the page |
//! | `GET /api/status` | how the run stands: [`status::Snapshot`] |
//! | `GET /api/stream` | the same as server-sent events, twice a second |
//! | `GET /api/history?stage=N&span=whole` | the course of a stage: [`curves::CurveDelta`]; `span=recent` for its last steps one by one; `era`, `width` and `from` of what is held already |
//! | `GET /api/events` | the last that happened, the newest first: `[{at, kind, detail}]` |
//! | `GET /api/evaluations` | evaluations, but for what was given up: [`records::Evaluations`] |
//! | `GET /api/captions?before=ID&after=ID&from=0` | captions of two evaluations side by side: [`records::Captions`] |
//! | `GET /api/image?evaluation=ID&index=N` | an image of an evaluation |
//! | `POST /api/COMMAND` | steers the run: see [`commands`] |
//!
//! The body of every error is `{"error": "why, and what to do"}`; only `/readyz` answers probes with a
//! line of text. Times are Unix seconds. Nothing here needs a token but the commands; what can be
//! asked for is bounded, and so is how much is asked at once.

mod commands;
mod curves;
mod hosts;
mod images;
mod limits;
mod live;
mod page;
mod reader;
mod records;
mod server;
mod status;
#[cfg(test)]
mod tests;
mod write_timeout;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use config::RunFile;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{access::Tokens, driver::Input, refusals::Refusals};
use crate::run::Outcome;
use curves::{CurveCursor, Curves, Span};
pub use hosts::AllowedHosts;
use hosts::HeadCheck;
use images::Pictures;
use limits::QueryParameters;
use live::Viewers;
use reader::Reader;
pub use server::serve;

/// Ok if the coordinator is ready, otherwise the reason.
pub type Readiness = Result<(), String>;

/// The state of all handlers.
pub struct AppState {
    file: Arc<RunFile>,
    driver: mpsc::Sender<Input>,
    tokens: Arc<Tokens>,
    refusals: Refusals,
    journal: Reader,
    curves: Mutex<Curves>,
    pictures: Pictures,
    viewers: Viewers,
}

impl AppState {
    /// The state for a run whose journal is in the folder `state`.
    pub fn new(
        file: RunFile,
        state: std::path::PathBuf,
        driver: mpsc::Sender<Input>,
        tokens: Arc<Tokens>,
        refusals: Refusals,
    ) -> Self {
        let era = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self {
            pictures: Pictures::new(file.data.clone()),
            file: Arc::new(file),
            driver,
            tokens,
            refusals,
            journal: Reader::new(state),
            curves: Mutex::new(Curves::new(era)),
            viewers: Viewers::default(),
        }
    }

    fn curves(&self) -> MutexGuard<'_, Curves> {
        self.curves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the run's outcome to all viewers.
    pub fn farewell(&self, outcome: &Outcome) {
        self.viewers.farewell(outcome);
    }

    /// Sends live updates to viewers, until `closing`.
    pub async fn keep(self: Arc<Self>, closing: impl Future<Output = ()>) {
        tokio::select! {
            () = live::keep(&self) => {}
            () = closing => self.viewers.close(),
        }
    }
}

/// All routes. Readiness reports the journal's problem first, then the run's. A worker that joins
/// at this port by mistake finds the gRPC port in a header of `/healthz`.
pub fn routes(
    desk: Arc<AppState>,
    metrics: PrometheusHandle,
    readiness: [watch::Receiver<Readiness>; 2],
    grpc_port: u16,
    hosts: AllowedHosts,
) -> Router {
    let head_check = HeadCheck { hosts, refusals: desk.refusals.clone() };
    let exposition = || [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let api = Router::new()
        .route("/status", get(status::answer))
        .route("/stream", get(live::stream))
        .route("/history", get(history))
        .route("/events", get(records::events))
        .route("/evaluations", get(records::evaluations))
        .route("/captions", get(records::captions))
        .route("/image", get(images::answer))
        .merge(commands::routes())
        .layer(DefaultBodyLimit::max(limits::MAX_BODY_BYTES))
        .with_state(desk);
    Router::new()
        .route("/metrics", get(move || async move { (exposition(), metrics.render()) }))
        .route("/healthz", get(move || async move { ([(transport::GRPC_PORT_HEADER, grpc_port.to_string())], "ok\n") }))
        .route("/readyz", get(move || ready(readiness)))
        .nest("/api", api)
        .merge(page::routes())
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing here: the page is at /"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not support the method: the header `allow` lists those it does",
            )
        })
        .layer(middleware::from_fn(limits::limit_time))
        .layer(middleware::from_fn_with_state(head_check, hosts::check_head))
        .layer(middleware::map_response(page::guard))
}

async fn ready([journal, run]: [watch::Receiver<Readiness>; 2]) -> impl IntoResponse {
    let journal = journal.borrow().clone();
    match journal.and_then(|()| run.borrow().clone()) {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

#[derive(Deserialize)]
struct StageCurves {
    stage: u32,
    #[serde(default)]
    span: Span,
    #[serde(default)]
    era: u64,
    #[serde(default)]
    width: u64,
    #[serde(default)]
    from: u64,
}

async fn history(
    State(desk): State<Arc<AppState>>,
    QueryParameters(asked): QueryParameters<StageCurves>,
) -> impl IntoResponse {
    let held = CurveCursor { era: asked.era, width: asked.width, from: asked.from };
    let piece = desk.curves().piece(asked.stage, asked.span, held);
    Json(piece)
}

/// An error answer: status code and JSON body.
#[derive(Debug)]
pub struct Problem {
    code: StatusCode,
    why: String,
}

impl Problem {
    fn new(code: StatusCode, why: impl Into<String>) -> Self {
        Self { code, why: why.into() }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.code, Json(json!({ "error": self.why }))).into_response()
    }
}
