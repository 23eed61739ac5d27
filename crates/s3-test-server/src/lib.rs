//! An S3 server on the loopback interface, for tests. Implements the requests of `object_store`,
//! and injects failures. Requests for an object with `forbidden` in its name are denied.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::http::header::{CONTENT_RANGE, ETAG, IF_MATCH, LAST_MODIFIED, RANGE};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use object_store::aws::AmazonS3Builder;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

#[derive(Default)]
struct State {
    /// The contents of all objects, by `bucket/key`.
    objects: BTreeMap<String, Vec<u8>>,
    /// The parts, by number, of each open multipart upload, by its id.
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// The number of multipart uploads that were started; also the source of their ids.
    started_uploads: usize,
    /// The names of objects that were read without a range, once for each read.
    full_reads: Vec<String>,
    /// The number of next requests that will fail.
    injected_failures: usize,
    failed_requests: usize,
    is_read_only: bool,
}

/// An S3 server, which runs until it is dropped.
pub struct S3TestServer {
    state: Arc<Mutex<State>>,
    address: String,
    runtime: Option<Runtime>,
}

impl Drop for S3TestServer {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl S3TestServer {
    /// Starts an empty server.
    #[must_use]
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let handle = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
            shared.lock().unwrap().handle(&method, &uri, &headers, body)
        };
        let routes = Router::new().fallback(handle).layer(axum::extract::DefaultBodyLimit::disable());
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self { state, address, runtime: Some(runtime) }
    }

    /// The connection settings for this server.
    #[must_use]
    pub fn settings(&self) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(&self.address)
            .with_allow_http(true)
            .with_region("test-region")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
    }

    /// The environment variables with which a program uses this server.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT", self.address.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "test-region".to_owned()),
            ("AWS_ACCESS_KEY_ID", "key".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "secret".to_owned()),
        ]
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds an object with the name `bucket/key`.
    pub fn put(&self, name: &str, content: Vec<u8>) {
        self.state().objects.insert(name.to_owned(), content);
    }

    /// All objects, by `bucket/key`.
    #[must_use]
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().objects.clone()
    }

    /// The number of reads without a range of objects whose name has this suffix.
    #[must_use]
    pub fn full_read_count(&self, suffix: &str) -> usize {
        self.state().full_reads.iter().filter(|name| name.ends_with(suffix)).count()
    }

    /// Makes this number of next requests fail with status 500.
    pub fn fail_next_requests(&self, requests: usize) {
        self.state().injected_failures = requests;
    }

    /// The number of requests that failed because of
    /// [`fail_next_requests`](Self::fail_next_requests).
    #[must_use]
    pub fn failed_requests(&self) -> usize {
        self.state().failed_requests
    }

    /// Denies writes from now on; deletions still work.
    pub fn deny_writes(&self) {
        self.state().is_read_only = true;
    }

    /// The number of multipart uploads that were started, and of those that are neither complete
    /// nor aborted.
    #[must_use]
    pub fn multipart_uploads(&self) -> (usize, usize) {
        let state = self.state();
        (state.started_uploads, state.uploads.len())
    }
}

impl State {
    fn handle(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: Bytes) -> Response<Body> {
        if self.injected_failures > 0 {
            self.injected_failures -= 1;
            self.failed_requests += 1;
            return error_response(StatusCode::INTERNAL_SERVER_ERROR, "InternalError");
        }
        let name = uri.path().trim_start_matches('/').replace("%20", " ");
        let Query(query) = Query::<BTreeMap<String, String>>::try_from_uri(uri).unwrap();
        let is_write = *method == Method::PUT || *method == Method::POST;
        if name.contains("forbidden") || (is_write && self.is_read_only) {
            return error_response(StatusCode::FORBIDDEN, "AccessDenied");
        }
        match (method.as_str(), query.get("uploadId")) {
            ("PUT", Some(upload)) => {
                let Some(parts) = self.uploads.get_mut(upload) else { return no_such_upload() };
                let response = etag_response(&body);
                parts.insert(query["partNumber"].parse().unwrap(), body.into());
                response
            }
            ("PUT", None) => {
                let response = etag_response(&body);
                self.objects.insert(name, body.into());
                response
            }
            ("POST", None) if query.contains_key("uploads") => {
                self.started_uploads += 1;
                let upload = format!("upload-{}", self.started_uploads);
                self.uploads.insert(upload.clone(), BTreeMap::new());
                xml_response(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            ("POST", Some(upload)) => {
                let Some(parts) = self.uploads.remove(upload) else { return no_such_upload() };
                let content = parts.into_values().collect::<Vec<_>>().concat();
                let tag = etag(&content);
                self.objects.insert(name, content);
                xml_response(&format!(
                    "<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
                ))
            }
            ("DELETE", upload) => {
                match upload {
                    Some(upload) => _ = self.uploads.remove(upload),
                    None => _ = self.objects.remove(&name),
                }
                Response::builder().status(StatusCode::NO_CONTENT).body(Body::empty()).unwrap()
            }
            ("GET", None) if query.contains_key("list-type") => self.list(&name, &query),
            ("GET" | "HEAD", None) => self.read(method, &name, headers),
            _ => error_response(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn list(&self, bucket: &str, query: &BTreeMap<String, String>) -> Response<Body> {
        let prefix = query.get("prefix").map_or("", String::as_str);
        let delimiter = query.get("delimiter").map(String::as_str);
        let (mut contents, mut prefixes) = (String::new(), BTreeSet::new());
        for (name, content) in &self.objects {
            let Some(key) = name.strip_prefix(bucket).and_then(|name| name.strip_prefix('/')) else { continue };
            let Some(rest) = key.strip_prefix(prefix) else { continue };
            if let Some((first, _)) = delimiter.and_then(|delimiter| rest.split_once(delimiter)) {
                prefixes.insert(format!("{prefix}{first}/"));
                continue;
            }
            let (size, modified) = (content.len(), "2015-10-21T07:28:00.000Z");
            let entry = format!("<Key>{key}</Key><Size>{size}</Size><LastModified>{modified}</LastModified>");
            write!(contents, "<Contents>{entry}</Contents>").unwrap();
        }
        for prefix in prefixes {
            write!(contents, "<CommonPrefixes><Prefix>{prefix}</Prefix></CommonPrefixes>").unwrap();
        }
        xml_response(&format!("<ListBucketResult>{contents}</ListBucketResult>"))
    }

    fn read(&mut self, method: &Method, name: &str, headers: &HeaderMap) -> Response<Body> {
        let Some(content) = self.objects.get(name) else { return error_response(StatusCode::NOT_FOUND, "NoSuchKey") };
        let text = |key| headers.get(key).map(|value| value.to_str().unwrap());
        if text(IF_MATCH).is_some_and(|expected| expected != etag(content)) {
            return error_response(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
        }
        let response =
            Response::builder().header(ETAG, etag(content)).header(LAST_MODIFIED, "Wed, 21 Oct 2015 07:28:00 GMT");
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
            self.full_reads.push(name.to_owned());
        }
        response.body(content.clone().into()).unwrap()
    }
}

fn etag(content: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("\"{:x}\"", hasher.finish())
}

fn etag_response(content: &[u8]) -> Response<Body> {
    Response::builder().header(ETAG, etag(content)).body(Body::empty()).unwrap()
}

fn xml_response(content: &str) -> Response<Body> {
    Response::builder().body(format!("<?xml version=\"1.0\"?>\n{content}\n").into()).unwrap()
}

fn no_such_upload() -> Response<Body> {
    error_response(StatusCode::NOT_FOUND, "NoSuchUpload")
}

fn error_response(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\"?>\n<Error>\n  <Code>{code}</Code>\n</Error>\n");
    Response::builder().status(status).body(body.into()).unwrap()
}
