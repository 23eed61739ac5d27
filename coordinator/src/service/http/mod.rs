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
//! - `app_state`: the state that the handlers of these paths share. `journal_reader`: access to the
//!   journal. `image_files`: access to images. `viewers`: the open streams of web pages.
//! - `error`: the body of an error.

mod app_state;
mod commands;
mod curves;
mod error;
mod hosts;
mod image_files;
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
mod viewers;
mod write_timeout;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use tokio::sync::watch;

use super::readiness::Readiness;
pub use app_state::AppState;
use curves::{CurveCursor, StepRange};
use error::HttpError;
pub use hosts::AllowedHosts;
use hosts::HeadCheck;
use limits::QueryParameters;
pub use server::serve;
pub use stream::send_updates;

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
