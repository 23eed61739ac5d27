//! The files of the web page, and the security headers of all answers.

use std::collections::BTreeMap;

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
    routing::get,
};
use metric_catalogue::{METRICS, STEP_VALUES};
use serde_json::{Value, json};

/// The web page may only load its own files and call the coordinator. Scripts cannot insert strings
/// as HTML.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! page_files {
    ($($path:literal: $media_type:expr, $file:literal;)*) => {
        /// The routes of the web page's files.
        pub fn routes() -> Router {
            Router::new()
                $(.route($path, get(async || page_file($media_type, include_str!(concat!("page/", $file))))))*
                .route("/page/metrics.js", get(async || page_file(SCRIPT, metrics_script())))
        }
    };
}

page_files! {
    "/": HTML, "index.html";
    "/page/style.css": "text/css; charset=utf-8", "style.css";
    "/page/icon.svg": "image/svg+xml", "icon.svg";
    "/page/main.js": SCRIPT, "main.js";
    "/page/api.js": SCRIPT, "api.js";
    "/page/candidates.js": SCRIPT, "candidates.js";
    "/page/captions.js": SCRIPT, "captions.js";
    "/page/chart.js": SCRIPT, "chart.js";
    "/page/controls.js": SCRIPT, "controls.js";
    "/page/curves.js": SCRIPT, "curves.js";
    "/page/dom.js": SCRIPT, "dom.js";
    "/page/evaluations.js": SCRIPT, "evaluations.js";
    "/page/events.js": SCRIPT, "events.js";
    "/page/format.js": SCRIPT, "format.js";
    "/page/overview.js": SCRIPT, "overview.js";
    "/page/scale.js": SCRIPT, "scale.js";
    "/page/stage_curves.js": SCRIPT, "stage_curves.js";
    "/page/workers.js": SCRIPT, "workers.js";
}

/// The catalogue of metrics as a JavaScript module: label and definition by name.
fn metrics_script() -> String {
    let metrics = METRICS.iter().map(|metric| (metric.name, metric.label, metric.definition));
    let values = STEP_VALUES.iter().map(|value| (value.name, value.label, value.definition));
    let entry = |(name, label, definition)| (name, json!({ "label": label, "definition": definition }));
    let entries: BTreeMap<&str, Value> = metrics.chain(values).map(entry).collect();
    format!("export const METRICS = {};\n", json!(entries))
}

fn page_file(media_type: &'static str, text: impl IntoResponse) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, "no-cache")], text)
}

/// Middleware that adds security headers to every answer.
pub async fn add_security_headers(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY);
    set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    set(header::REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
