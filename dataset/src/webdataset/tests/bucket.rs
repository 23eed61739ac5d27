//! As much of S3 as the tests need: HEAD, GET with `Range` and `If-Match`, PUT, and the ways in which they fail.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_RANGE, ETAG, IF_MATCH, LAST_MODIFIED, RANGE};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    whole_reads: Vec<String>,
    failures_to_come: usize,
    failures: usize,
    read_only: bool,
}

pub struct Bucket {
    state: Arc<Mutex<State>>,
    address: String,
    runtime: Option<Runtime>,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Bucket {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
            shared.lock().unwrap().answer(&method, &uri, &headers, body)
        };
        runtime.spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Self { state, address, runtime: Some(runtime) }
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Under `bucket/key`.
    pub fn put(&self, name: &str, content: Vec<u8>) {
        self.state.lock().unwrap().objects.insert(name.to_owned(), content);
    }

    /// How often objects whose name ends so were read from start to end.
    pub fn whole_reads(&self, ending: &str) -> usize {
        self.state.lock().unwrap().whole_reads.iter().filter(|name| name.ends_with(ending)).count()
    }

    /// The next requests are answered by 500.
    pub fn fail_next(&self, requests: usize) {
        self.state.lock().unwrap().failures_to_come = requests;
    }

    pub fn failures(&self) -> usize {
        self.state.lock().unwrap().failures
    }

    pub fn refuse_writes(&self) {
        self.state.lock().unwrap().read_only = true;
    }
}

impl State {
    fn answer(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Response<Body> {
        if self.failures_to_come > 0 {
            self.failures_to_come -= 1;
            self.failures += 1;
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        let name = uri.path().trim_start_matches('/').replace("%20", " ");
        if name.contains("forbidden") || (method == Method::PUT && self.read_only) {
            return refuse(StatusCode::FORBIDDEN, "AccessDenied");
        }
        match *method {
            Method::PUT => {
                let response = Response::builder().header(ETAG, tag(&body)).body(Body::empty()).unwrap();
                self.objects.insert(name, body.into());
                response
            }
            Method::GET | Method::HEAD => self.read(method, &name, headers),
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn read(&mut self, method: &Method, name: &str, headers: &HeaderMap) -> Response<Body> {
        let Some(content) = self.objects.get(name) else { return refuse(StatusCode::NOT_FOUND, "NoSuchKey") };
        let text = |key| headers.get(key).map(|value| value.to_str().unwrap());
        if text(IF_MATCH).is_some_and(|wanted| wanted != tag(content)) {
            return refuse(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let response =
            Response::builder().header(ETAG, tag(content)).header(LAST_MODIFIED, "Wed, 21 Oct 2015 07:28:00 GMT");
        if let Some(range) = text(RANGE) {
            let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
            return response
                .status(StatusCode::PARTIAL_CONTENT)
                .header(CONTENT_RANGE, format!("bytes {first}-{last}/{}", content.len()))
                .body(content[first..=last].to_vec().into())
                .unwrap();
        }
        if method == Method::GET {
            self.whole_reads.push(name.to_owned());
        }
        response.body(content.clone().into()).unwrap()
    }
}

fn tag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:x}\"", hasher.finish())
}

fn refuse(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\"?>\n<Error>\n  <Code>{code}</Code>\n</Error>\n");
    Response::builder().status(status).body(body.into()).unwrap()
}
