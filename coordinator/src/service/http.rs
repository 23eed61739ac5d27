//! What the coordinator answers over HTTP: metrics for Prometheus, and whether it is alive and ready.

use axum::{
    Router,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

/// Whether the coordinator is ready, and if not, why.
pub type Readiness = Result<(), String>;

/// `/metrics`, `/healthz`, `/readyz`. The first reason why not to be ready is told: the journal's, then the run's.
pub fn routes(metrics: PrometheusHandle, readiness: [watch::Receiver<Readiness>; 2]) -> Router {
    let exposition = || [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Router::new()
        .route("/metrics", get(move || async move { (exposition(), metrics.render()) }))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(move || ready(readiness)))
}

async fn ready([journal, run]: [watch::Receiver<Readiness>; 2]) -> impl IntoResponse {
    let journal = journal.borrow().clone();
    match journal.and_then(|()| run.borrow().clone()) {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
