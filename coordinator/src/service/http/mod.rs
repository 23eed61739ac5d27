//! The HTTP server of the coordinator: metrics for Prometheus, liveness and readiness probes, and
//! the web page with its API.
//!
//! | path | |
//! |---|---|
//! | `GET /metrics`, `/healthz`, `/readyz` | for Prometheus and probes |
//! | `GET /`, `/page/...` | the web page |
//! | `GET /api/status` | the status of the run: [`status::Snapshot`] |
//! | `GET /api/stream` | the same as server-sent events, twice a second |
//! | `GET /api/history?stage=N&range=full` | the curves of a stage: [`curves::CurvesAnswer`]; `range=recent`: its last steps, one per bucket; `version`, `bucket_size` and `from_step`: the client's [cursor](curves::CurveCursor) |
//! | `GET /api/events` | the last events, the newest first: `[{at, kind, detail}]` |
//! | `GET /api/evaluations` | evaluations of steps that were not given up: [`records::Evaluations`] |
//! | `GET /api/captions?before=ID&after=ID&offset=0` | captions of the evaluations `before` and `after` side by side, from the image with the index `offset` on: [`records::Captions`] |
//! | `GET /api/image?evaluation=ID&index=N` | an image of an evaluation |
//! | `POST /api/COMMAND` | a command of an operator: see [`commands`] |
//!
//! The body of an error is `{"error": "what happened, and what to do"}`. Exceptions: `/readyz`
//! answers probes with a line of text, and a request that is not valid HTTP gets no body. Times are
//! Unix seconds. Only commands need a token. The size of every answer and the number of concurrent
//! queries are limited.
//!
//! - `server`: connections. `limits`, `write_timeout`: time and size limits. `hosts`: the check of
//!   `Host`.
//! - `page`: the files of the web page.
//! - `status`, `stream`, `curves`, `records`, `images`, `commands`: the paths below `/api`.
//! - `journal_reader`: access to the journal for these paths.

mod commands;
mod curves;
mod hosts;
mod images;
mod journal_reader;
mod limits;
mod page;
mod records;
mod server;
mod status;
mod stream;
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
use dico_engine::{NotReady, Outcome};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{mpsc, watch};

use super::{auth::Tokens, driver::DriverInput, refusals::Refusals};
use curves::{CurveCursor, Curves, StepRange};
pub use hosts::AllowedHosts;
use hosts::HeadCheck;
use images::Images;
use journal_reader::JournalReader;
use limits::QueryParameters;
pub use server::serve;
use stream::Viewers;

/// Whether the run, or the journal, is ready. The readiness probe answers with both.
pub type Readiness = Result<(), NotReady>;

/// The state that all handlers share.
pub struct AppState {
    file: Arc<RunFile>,
    /// The driver's input channel.
    driver: mpsc::Sender<DriverInput>,
    tokens: Arc<Tokens>,
    refusals: Refusals,
    journal: JournalReader,
    /// The curves of all stages, as of the last update.
    curves: Mutex<Curves>,
    images: Images,
    /// The open web pages.
    viewers: Viewers,
}

impl AppState {
    /// The state for the run of a run file, whose journal is in `journal_folder`.
    pub fn new(
        file: RunFile,
        journal_folder: std::path::PathBuf,
        driver: mpsc::Sender<DriverInput>,
        tokens: Arc<Tokens>,
        refusals: Refusals,
    ) -> Self {
        // The version of the curves counts up from the time of the start. So it differs from the
        // versions of earlier coordinators, which started earlier.
        let curves_version = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Self {
            images: Images::new(file.data.clone()),
            file: Arc::new(file),
            driver,
            tokens,
            refusals,
            journal: JournalReader::new(journal_folder),
            curves: Mutex::new(Curves::new(curves_version)),
            viewers: Viewers::default(),
        }
    }

    fn curves(&self) -> MutexGuard<'_, Curves> {
        self.curves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the outcome of the coordinator process to all viewers.
    pub fn send_outcome(&self, outcome: &Outcome) {
        self.viewers.send_outcome(outcome);
    }

    /// Updates the curves and sends snapshots to viewers, until `shutdown`.
    pub async fn send_updates(self: Arc<Self>, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = stream::send_updates(&self) => {}
            () = shutdown => self.viewers.close(),
        }
    }
}

/// All routes. `readiness` is that of the journal, then that of the run; `/readyz` reports the
/// first of the two that is not ready. A header of `/healthz` has the gRPC port, for a worker that
/// was started with the address of the HTTP port by mistake.
pub fn routes(
    app_state: Arc<AppState>,
    metrics: PrometheusHandle,
    readiness: [watch::Receiver<Readiness>; 2],
    grpc_port: u16,
    hosts: AllowedHosts,
) -> Router {
    let head_check = HeadCheck { hosts, refusals: app_state.refusals.clone() };
    let metrics_headers = || [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let api = Router::new()
        .route("/status", get(status::status))
        .route("/stream", get(stream::stream))
        .route("/history", get(history))
        .route("/events", get(records::events))
        .route("/evaluations", get(records::evaluations))
        .route("/captions", get(records::captions))
        .route("/image", get(images::image))
        .merge(commands::routes())
        .layer(DefaultBodyLimit::max(limits::MAX_BODY_BYTES))
        .with_state(app_state);
    Router::new()
        .route("/metrics", get(move || async move { (metrics_headers(), metrics.render()) }))
        .route("/healthz", get(move || async move { ([(transport::GRPC_PORT_HEADER, grpc_port.to_string())], "ok\n") }))
        .route("/readyz", get(move || ready(readiness)))
        .nest("/api", api)
        .merge(page::routes())
        .fallback(async || HttpError::new(StatusCode::NOT_FOUND, "unknown path: the web page is at /"))
        .method_not_allowed_fallback(async || {
            HttpError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not support the method: the header `allow` lists the supported methods",
            )
        })
        .layer(middleware::from_fn(limits::limit_response_time))
        .layer(middleware::from_fn_with_state(head_check, hosts::check_head))
        .layer(middleware::map_response(page::add_security_headers))
}

async fn ready([journal, run]: [watch::Receiver<Readiness>; 2]) -> impl IntoResponse {
    let journal = journal.borrow().clone();
    match journal.and_then(|()| run.borrow().clone()) {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(not_ready) => (StatusCode::SERVICE_UNAVAILABLE, format!("{not_ready}\n")),
    }
}

/// The query parameters of `GET /api/history`: what is requested, then the client's
/// [`CurveCursor`].
#[derive(Deserialize)]
struct HistoryQuery {
    stage: u32,
    #[serde(default)]
    range: StepRange,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    bucket_size: u64,
    #[serde(default)]
    from_step: u64,
}

/// `GET /api/history`.
async fn history(
    State(app_state): State<Arc<AppState>>,
    QueryParameters(query): QueryParameters<HistoryQuery>,
) -> impl IntoResponse {
    let cursor = CurveCursor { version: query.version, bucket_size: query.bucket_size, from_step: query.from_step };
    let answer = app_state.curves().answer(query.stage, query.range, cursor);
    Json(answer)
}

/// An error answer: status code and JSON body.
#[derive(Debug)]
pub struct HttpError {
    code: StatusCode,
    message: String,
}

impl HttpError {
    fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        (self.code, Json(json!({ "error": self.message }))).into_response()
    }
}
