use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::{self, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::{Error, TlsFiles, Token, probe};

/// Time limit of an attempt to connect.
const CONNECT: Duration = Duration::from_secs(5);
/// Time limit of the coordinator's answer to a unary call.
const ANSWER: Duration = Duration::from_secs(10);
/// Keepalive pings are sent after `heartbeat_timeout` divided by this, without traffic.
const ASKS: u32 = 5;
/// The text by which tonic reports an answer that is not gRPC, before the HTTP status.
const HTTP_STATUS: &str = "mapped from HTTP status code ";
/// The text by which tonic reports that a server did not negotiate HTTP/2 in the TLS handshake.
const NO_HTTP_2: &str = "HTTP/2 was not negotiated";
/// The text with which rustls begins to report that the peer has aborted the handshake.
const ALERT: &str = "received fatal alert: ";

/// The connection settings for a coordinator: its address, certificates and a token.
#[derive(Clone)]
pub struct Link {
    url: String,
    host: String,
    port: u16,
    tls: bool,
    endpoint: Endpoint,
    bearer: Bearer,
}

/// A connection that adds the token to each call.
pub type Channel = InterceptedService<transport::Channel, Bearer>;

impl Link {
    /// Checks that address, certificates and token are consistent. Does not connect.
    ///
    /// # Errors
    /// They are inconsistent, or a file cannot be used.
    pub fn new(url: String, tls: Option<&TlsFiles>, token: Option<&Token>) -> Result<Self, Error> {
        let invalid = || Error::Url(url.clone());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().ok_or_else(invalid)?);
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid()),
        };
        let mut endpoint = Endpoint::from(uri).connect_timeout(CONNECT).tcp_nodelay(true);
        match tls {
            Some(_) if !secure => return Err(Error::NotTls(url)),
            None if secure => return Err(Error::NoCertificates(url)),
            Some(files) => {
                let refused = |error: transport::Error| Error::Authority {
                    path: files.tls_ca.clone(),
                    problem: error.source().map_or_else(|| error.to_string(), ToString::to_string),
                };
                endpoint = endpoint.tls_config(files.client()?).map_err(refused)?;
            }
            None => {}
        }
        if token.is_some() && !secure && !is_loopback(&host) {
            tracing::warn!("the token goes to {url} in plain text: whoever listens on the way can use it");
        }
        Ok(Self { url, host, port, tls: secure, endpoint, bearer: Bearer::new(token) })
    }

    /// The URL of the coordinator.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The host name or IP address of the coordinator, and its port.
    #[must_use]
    pub fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Makes a call on a new connection. Fails if the answer, or the beginning of a stream of
    /// answers, takes too long; a stream fails when the coordinator is silent.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if there is no answer, [`Code::Unauthenticated`] for an invalid
    /// certificate, [`Code::Internal`] if the server is no coordinator, otherwise the status of the
    /// coordinator.
    pub async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let endpoint = self.endpoint.clone().timeout(ANSWER);
        let endpoint = endpoint.http2_keep_alive_interval(ANSWER).keep_alive_timeout(ANSWER);
        let channel = match self.connect(&endpoint).await {
            Ok(channel) => channel,
            Err(status) if status.code() == Code::Unavailable => return Err(self.mismatch().await.unwrap_or(status)),
            Err(status) => return Err(status),
        };
        let status = match question(channel).await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => status,
        };
        // Under TLS 1.3 the server checks the client's certificate only when the connection is
        // established for the client.
        if let Some(problem) = certificate_problem(&status).or_else(|| foreign_answer(&status)) {
            return Err(problem);
        }
        // tonic's errors from servers have no source; those about connections have one.
        if status.source().is_none() {
            return Err(status);
        }
        Err(self.mismatch().await.unwrap_or_else(|| Status::unavailable(format!("no answer: {}", status.message()))))
    }

    /// A connection for a long-lived stream. It fails when nothing is received for `heartbeat_timeout`.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if there is no answer, [`Code::Unauthenticated`] for an invalid
    /// certificate.
    pub async fn stay(&self, heartbeat_timeout: Duration) -> Result<Channel, Status> {
        let endpoint = self.endpoint.clone().http2_keep_alive_interval(heartbeat_timeout / ASKS);
        self.connect(&endpoint.keep_alive_timeout(heartbeat_timeout).keep_alive_while_idle(true)).await
    }

    /// The error message if something other than a coordinator listens at the address; else none.
    async fn mismatch(&self) -> Option<Status> {
        probe::mismatch(&self.host, self.port, self.tls).await.map(Status::internal)
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Status> {
        let unavailable = |error: transport::Error| {
            let reason = chain(&error);
            if reason.contains(NO_HTTP_2) {
                return Status::internal("this port speaks TLS, but not HTTP/2, so it is no coordinator's");
            }
            certificate_problem(&error).unwrap_or_else(|| Status::unavailable(format!("no answer: {reason}")))
        };
        let channel = endpoint.connect().await.map_err(unavailable)?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The error for an invalid certificate, if the cause of `error` is one. Retries would not help.
fn certificate_problem(error: &(dyn StdError + 'static)) -> Option<Status> {
    let problem = |error: &(dyn StdError + 'static)| {
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        if let Some(rustls::Error::InvalidCertificate(problem)) = inner.downcast_ref() {
            return Some(format!("the coordinator's certificate is not good: {problem:?}; --tls-ca says whose are"));
        }
        // Of errors after the handshake, HTTP/2 keeps only the text.
        let text = inner.to_string();
        let alert = text.strip_prefix(ALERT)?;
        Some(format!("the coordinator takes no such certificate as that of --tls-cert: {alert}"))
    };
    std::iter::successors(Some(error), |&error| error.source()).find_map(problem).map(Status::unauthenticated)
}

/// The error for an answer over HTTP/2 that is not gRPC, if retries would not help: a proxy answers
/// with 429 or 5xx while its backend is unavailable.
fn foreign_answer(status: &Status) -> Option<Status> {
    let http = status.message().split_once(HTTP_STATUS)?.1;
    let is_final = http.starts_with('4') && http != "429";
    let reason = format!("something that speaks HTTP/2 and is no coordinator answers with HTTP status {http}");
    is_final.then(|| Status::internal(reason))
}

/// An error and its sources, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Adds the token to each call.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn new(token: Option<&Token>) -> Self {
        let value = |token: &Token| {
            let mut value: MetadataValue<Ascii> = token.authorization().parse().expect("a token is visible ASCII");
            value.set_sensitive(true);
            value
        };
        Self(token.map(value))
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str, tls: Option<&TlsFiles>) -> String {
        let Err(error) = Link::new(url.to_owned(), tls, None) else { panic!("{url} is good") };
        error.to_string()
    }

    #[test]
    fn an_address_is_a_url_with_a_port() {
        for url in ["nonsense", "here:7070", "ftp://here:7070", "http://here", "http://:7070", ""] {
            assert!(refusal(url, None).contains("not a URL like http://host:port"), "{url}");
        }
        assert_eq!(
            Link::new("http://[::1]:7070".into(), None, None).map(|link| link.url).unwrap(),
            "http://[::1]:7070"
        );
    }

    #[test]
    fn a_proxy_without_a_route_is_told_from_one_whose_backend_is_away() {
        let mapped = |status: u16| Status::unknown(format!("grpc-status header missing, {HTTP_STATUS}{status}"));
        for status in [400, 401, 403, 404, 405] {
            let said = foreign_answer(&mapped(status)).unwrap();
            assert_eq!(said.code(), Code::Internal);
            assert!(said.message().contains(&format!("HTTP status {status}")), "{said}");
        }
        for status in [429, 500, 502, 503, 504] {
            assert!(foreign_answer(&mapped(status)).is_none(), "{status}");
        }
        assert!(foreign_answer(&Status::not_found("the run is over")).is_none());
    }

    #[test]
    fn certificates_and_https_go_together() {
        let missing = || std::path::PathBuf::from("/nowhere/file.pem");
        let files = TlsFiles { tls_ca: missing(), tls_cert: missing(), tls_key: missing() };
        assert!(refusal("http://here:7070", Some(&files)).contains("must begin with https://"));
        assert!(refusal("https://here:7070", None).contains("needs --tls-ca, --tls-cert and --tls-key"));
        assert!(refusal("https://here:7070", Some(&files)).starts_with("/nowhere/file.pem: "));
    }
}
