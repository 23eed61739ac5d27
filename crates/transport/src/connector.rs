use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::{self, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::{Error, TlsFiles, Token, probe};

/// Time limit of an attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit of the coordinator's response to a unary call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The number of keepalive pings per `heartbeat_timeout`.
const PINGS_PER_TIMEOUT: u32 = 5;
/// The text with which tonic reports a response that is not gRPC; the HTTP status follows.
const HTTP_STATUS_PREFIX: &str = "mapped from HTTP status code ";
/// The text with which tonic reports that a server did not negotiate HTTP/2 in the TLS handshake.
const HTTP_2_NOT_NEGOTIATED: &str = "HTTP/2 was not negotiated";
/// The text with which rustls reports that the peer has aborted the handshake; the alert follows.
const ALERT_PREFIX: &str = "received fatal alert: ";

/// Connects to a coordinator. Has the coordinator's address, the certificates of this side, and the
/// token.
#[derive(Clone)]
pub struct Connector {
    url: String,
    host: String,
    port: u16,
    uses_tls: bool,
    endpoint: Endpoint,
    token: TokenInterceptor,
}

/// A connection that adds the token to each call.
pub type Channel = InterceptedService<transport::Channel, TokenInterceptor>;

impl Connector {
    /// Checks that address, certificates and token are consistent. Does not connect.
    ///
    /// # Errors
    /// The URL is invalid, certificates are given for `http://` or missing for `https://`, or a
    /// file cannot be used.
    pub fn new(url: String, tls: Option<&TlsFiles>, token: Option<&Token>) -> Result<Self, Error> {
        let invalid = || Error::Url(url.clone());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(invalid)?;
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().ok_or_else(invalid)?);
        let uses_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid()),
        };
        let mut endpoint = Endpoint::from(uri).connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        match tls {
            Some(_) if !uses_tls => return Err(Error::CertificatesWithoutTls(url)),
            None if uses_tls => return Err(Error::TlsWithoutCertificates(url)),
            Some(files) => {
                let authority_error = |error: transport::Error| Error::Authority {
                    path: files.tls_ca.clone(),
                    problem: error.source().map_or_else(|| error.to_string(), ToString::to_string),
                };
                endpoint = endpoint.tls_config(files.client_config()?).map_err(authority_error)?;
            }
            None => {}
        }
        if token.is_some() && !uses_tls && !is_loopback(&host) {
            tracing::warn!(
                "the token is sent to {url} in plain text, so anyone on the network path can read it: use https://"
            );
        }
        Ok(Self { url, host, port, uses_tls, endpoint, token: TokenInterceptor::new(token) })
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

    /// Makes a call on a new connection. Fails if the response, or the first message of a stream,
    /// takes longer than [`CALL_TIMEOUT`]. After that a stream may be silent for any time, as long
    /// as the coordinator answers keepalive pings.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if there is no response, [`Code::Unauthenticated`] for an invalid
    /// certificate, [`Code::Internal`] if the server is not a coordinator, otherwise the status of
    /// the coordinator.
    pub async fn call<T>(&self, call: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>) -> Result<T, Status> {
        let endpoint = self.endpoint.clone().timeout(CALL_TIMEOUT);
        let endpoint = endpoint.http2_keep_alive_interval(CALL_TIMEOUT).keep_alive_timeout(CALL_TIMEOUT);
        let channel = match self.connect(&endpoint).await {
            Ok(channel) => channel,
            Err(status) if status.code() == Code::Unavailable => {
                return Err(self.find_mismatch().await.unwrap_or(status));
            }
            Err(status) => return Err(status),
        };
        let status = match call(channel).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        // Under TLS 1.3 the server checks the client's certificate after the handshake is complete
        // for the client, so the first call can fail because of the certificate.
        if let Some(problem) = certificate_error(&status).or_else(|| not_grpc_error(&status)) {
            return Err(problem);
        }
        // An error that the server sent has no source in tonic; an error about the connection has a
        // source.
        if status.source().is_none() {
            return Err(status);
        }
        Err(self
            .find_mismatch()
            .await
            .unwrap_or_else(|| Status::unavailable(format!("no response: {}", status.message()))))
    }

    /// Opens a connection for a long-lived stream. The connection fails when a keepalive ping is
    /// not answered within `heartbeat_timeout`.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if there is no response, [`Code::Unauthenticated`] for an invalid
    /// certificate, [`Code::Internal`] if the server speaks TLS without HTTP/2.
    pub async fn open_channel(&self, heartbeat_timeout: Duration) -> Result<Channel, Status> {
        let endpoint = self.endpoint.clone().http2_keep_alive_interval(heartbeat_timeout / PINGS_PER_TIMEOUT);
        self.connect(&endpoint.keep_alive_timeout(heartbeat_timeout).keep_alive_while_idle(true)).await
    }

    /// The error if a server that is not this coordinator's gRPC service listens at the address;
    /// none if no such server is found.
    async fn find_mismatch(&self) -> Option<Status> {
        probe::find_mismatch(&self.host, self.port, self.uses_tls).await.map(Status::internal)
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Status> {
        let unavailable = |error: transport::Error| {
            let reason = error_chain(&error);
            if reason.contains(HTTP_2_NOT_NEGOTIATED) {
                return Status::internal("this port speaks TLS, but not HTTP/2, so it is not a coordinator's");
            }
            certificate_error(&error).unwrap_or_else(|| Status::unavailable(format!("no response: {reason}")))
        };
        let channel = endpoint.connect().await.map_err(unavailable)?;
        Ok(InterceptedService::new(channel, self.token.clone()))
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// The error for a certificate that one of the two sides refuses, if that is the cause of `error`.
/// Retries would not help.
fn certificate_error(error: &(dyn StdError + 'static)) -> Option<Status> {
    let problem = |error: &(dyn StdError + 'static)| {
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        if let Some(rustls::Error::InvalidCertificate(problem)) = inner.downcast_ref() {
            return Some(format!(
                "the coordinator's certificate is invalid: {problem:?}; check the authority in --tls-ca"
            ));
        }
        // HTTP/2 keeps only the text of errors after the handshake.
        let text = inner.to_string();
        let alert = text.strip_prefix(ALERT_PREFIX)?;
        Some(format!("the coordinator refuses the certificate of --tls-cert: {alert}"))
    };
    std::iter::successors(Some(error), |&error| error.source()).find_map(problem).map(Status::unauthenticated)
}

/// The error for a response over HTTP/2 that is not gRPC, if retries would not help: a proxy
/// responds with 429 or 5xx while its backend is unavailable.
fn not_grpc_error(status: &Status) -> Option<Status> {
    let http_status = status.message().split_once(HTTP_STATUS_PREFIX)?.1;
    let is_permanent = http_status.starts_with('4') && http_status != "429";
    let reason =
        format!("a server that speaks HTTP/2 but is not a coordinator responds with HTTP status {http_status}");
    is_permanent.then(|| Status::internal(reason))
}

/// An error and its sources, in one line.
fn error_chain(error: &dyn StdError) -> String {
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
pub struct TokenInterceptor(Option<MetadataValue<Ascii>>);

impl TokenInterceptor {
    fn new(token: Option<&Token>) -> Self {
        let value = |token: &Token| {
            let mut value: MetadataValue<Ascii> = token.authorization().parse().expect("a token is visible ASCII");
            value.set_sensitive(true);
            value
        };
        Self(token.map(value))
    }
}

impl Interceptor for TokenInterceptor {
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

    fn error(url: &str, tls: Option<&TlsFiles>) -> String {
        let Err(error) = Connector::new(url.to_owned(), tls, None) else { panic!("{url} is good") };
        error.to_string()
    }

    #[test]
    fn an_address_without_scheme_or_port_is_refused() {
        for url in ["nonsense", "here:7070", "ftp://here:7070", "http://here", "http://:7070", ""] {
            assert!(error(url, None).contains("not a URL like http://host:port"), "{url}");
        }
        assert_eq!(
            Connector::new("http://[::1]:7070".into(), None, None).map(|connector| connector.url).unwrap(),
            "http://[::1]:7070"
        );
    }

    #[test]
    fn http_errors_are_permanent_unless_a_backend_is_unavailable() {
        let mapped = |status: u16| Status::unknown(format!("grpc-status header missing, {HTTP_STATUS_PREFIX}{status}"));
        for status in [400, 401, 403, 404, 405] {
            let error = not_grpc_error(&mapped(status)).unwrap();
            assert_eq!(error.code(), Code::Internal);
            assert!(error.message().contains(&format!("HTTP status {status}")), "{error}");
        }
        for status in [429, 500, 502, 503, 504] {
            assert!(not_grpc_error(&mapped(status)).is_none(), "{status}");
        }
        assert!(not_grpc_error(&Status::not_found("the run is over")).is_none());
    }

    #[test]
    fn certificates_need_https_and_https_needs_certificates() {
        let missing = || std::path::PathBuf::from("/nowhere/file.pem");
        let files = TlsFiles { tls_ca: missing(), tls_cert: missing(), tls_key: missing() };
        assert!(error("http://here:7070", Some(&files)).contains("must begin with https://"));
        assert!(error("https://here:7070", None).contains("needs --tls-ca, --tls-cert and --tls-key"));
        assert!(error("https://here:7070", Some(&files)).starts_with("/nowhere/file.pem: "));
    }
}
