//! A fake S3 server on the loopback for tests: the requests that are needed, and their failures.

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
    objects: BTreeMap<String, Vec<u8>>,
    /// The parts of uploads by number, by id of the upload.
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    uploads_begun: usize,
    whole_reads: Vec<String>,
    failures_to_come: usize,
    failures: usize,
    read_only: bool,
}

/// A fake S3 server, which runs until it is dropped.
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
    /// Starts an empty server.
    #[must_use]
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let answer = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| async move {
            shared.lock().unwrap().answer(&method, &uri, &headers, body)
        };
        let routes = Router::new().fallback(answer).layer(axum::extract::DefaultBodyLimit::disable());
        runtime.spawn(async move { axum::serve(listener, routes).await });
        Self { state, address, runtime: Some(runtime) }
    }

    /// The connection settings for it.
    #[must_use]
    pub fn settings(&self) -> AmazonS3Builder {
        AmazonS3Builder::new()
            .with_endpoint(&self.address)
            .with_allow_http(true)
            .with_region("here")
            .with_access_key_id("key")
            .with_secret_access_key("secret")
    }

    /// The environment variables for a program that is to use it.
    #[must_use]
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT", self.address.clone()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
            ("AWS_REGION", "here".to_owned()),
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

    /// The number of full reads of objects with this suffix.
    #[must_use]
    pub fn whole_reads(&self, ending: &str) -> usize {
        self.state().whole_reads.iter().filter(|name| name.ends_with(ending)).count()
    }

    /// Makes the next requests fail with 500.
    pub fn fail_next(&self, requests: usize) {
        self.state().failures_to_come = requests;
    }

    /// The number of requests that failed so.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.state().failures
    }

    /// Refuses writes from now on; deletions still work.
    pub fn refuse_writes(&self) {
        self.state().read_only = true;
    }

    /// The number of multipart uploads that were begun, and of those that are neither complete nor
    /// aborted.
    #[must_use]
    pub fn uploads(&self) -> (usize, usize) {
        let state = self.state();
        (state.uploads_begun, state.uploads.len())
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
        let Query(query) = Query::<BTreeMap<String, String>>::try_from_uri(uri).unwrap();
        let writes = *method == Method::PUT || *method == Method::POST;
        if name.contains("forbidden") || (writes && self.read_only) {
            return refuse(StatusCode::FORBIDDEN, "AccessDenied");
        }
        match (method.as_str(), query.get("uploadId")) {
            ("PUT", Some(upload)) => {
                let Some(parts) = self.uploads.get_mut(upload) else { return no_upload() };
                let response = done(&body);
                parts.insert(query["partNumber"].parse().unwrap(), body.into());
                response
            }
            ("PUT", None) => {
                let response = done(&body);
                self.objects.insert(name, body.into());
                response
            }
            ("POST", None) if query.contains_key("uploads") => {
                self.uploads_begun += 1;
                let upload = format!("upload-{}", self.uploads_begun);
                self.uploads.insert(upload.clone(), BTreeMap::new());
                xml(&format!(
                    "<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
                ))
            }
            ("POST", Some(upload)) => {
                let Some(parts) = self.uploads.remove(upload) else { return no_upload() };
                let content = parts.into_values().collect::<Vec<_>>().concat();
                let tag = tag(&content);
                self.objects.insert(name, content);
                xml(&format!("<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"))
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
            _ => refuse(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
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
        xml(&format!("<ListBucketResult>{contents}</ListBucketResult>"))
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

fn done(content: &[u8]) -> Response<Body> {
    Response::builder().header(ETAG, tag(content)).body(Body::empty()).unwrap()
}

fn xml(content: &str) -> Response<Body> {
    Response::builder().body(format!("<?xml version=\"1.0\"?>\n{content}\n").into()).unwrap()
}

fn no_upload() -> Response<Body> {
    refuse(StatusCode::NOT_FOUND, "NoSuchUpload")
}

fn refuse(status: StatusCode, code: &str) -> Response<Body> {
    let body = format!("<?xml version=\"1.0\"?>\n<Error>\n  <Code>{code}</Code>\n</Error>\n");
    Response::builder().status(status).body(body.into()).unwrap()
}
