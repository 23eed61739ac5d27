use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::{Interceptor, interceptor::InterceptedService};
use tonic::transport::{self, Endpoint, Uri};
use tonic::{Code, Request, Response, Status};

use crate::{Error, TlsFiles, Token};

/// How long an attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long the coordinator may take to answer a question.
const ANSWER: Duration = Duration::from_secs(10);
/// Of the time after which silence is death, the part after which the other side is asked whether it is there.
const ASKS: u32 = 5;
/// How rustls begins to say that the other side does not go on.
const ALERT: &str = "received fatal alert: ";

/// The way to a coordinator: its address, certificates and a token.
#[derive(Clone)]
pub struct Link {
    url: String,
    endpoint: Endpoint,
    bearer: Bearer,
}

/// A connection on which every call carries the token.
pub type Channel = InterceptedService<transport::Channel, Bearer>;

impl Link {
    /// Checks that an address, certificates and token go together; connects to nobody yet.
    ///
    /// # Errors
    /// They do not, or a file is not what it should be.
    pub fn new(url: String, tls: Option<&TlsFiles>, token: Option<&Token>) -> Result<Self, Error> {
        let invalid = || Error::Url(url.clone());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let host =
            uri.host().filter(|host| !host.is_empty() && uri.port_u16().is_some()).ok_or_else(invalid)?.to_owned();
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
        Ok(Self { url, endpoint, bearer: Bearer::new(token) })
    }

    /// Where the coordinator is.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks something on a connection of its own; the answer comes soon or not at all.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if nobody answers, [`Code::Unauthenticated`] if
    /// a certificate is not good, else what the coordinator says.
    pub async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(Channel) -> Result<Response<T>, Status>,
    ) -> Result<T, Status> {
        let channel = self.connect(&self.endpoint.clone().timeout(ANSWER)).await?;
        match question(channel).await {
            Ok(answer) => Ok(answer.into_inner()),
            // Under TLS 1.3 the coordinator looks at certificates when the connection already stands on this side.
            Err(status) => Err(certificate_problem(&status).or_else(|| self.other_protocol(&status)).unwrap_or(status)),
        }
    }

    /// A connection for a stream that stays open, until nothing was heard for `lost_after`.
    ///
    /// # Errors
    /// [`Code::Unavailable`] if nobody answers, [`Code::Unauthenticated`] if
    /// a certificate is not good.
    pub async fn stay(&self, lost_after: Duration) -> Result<Channel, Status> {
        let endpoint = self.endpoint.clone().http2_keep_alive_interval(lost_after / ASKS);
        self.connect(&endpoint.keep_alive_timeout(lost_after).keep_alive_while_idle(true)).await
    }

    /// What answers a plain question in no protocol of ours may be one that wants TLS.
    fn other_protocol(&self, status: &Status) -> Option<Status> {
        let garbled = status.code() == Code::Internal && status.source().is_some();
        let reason = format!("{}: a coordinator that has certificates is at https://, not http://", status.message());
        (garbled && self.url.starts_with("http://")).then(|| Status::internal(reason))
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Channel, Status> {
        let unavailable = |error: transport::Error| {
            certificate_problem(&error).unwrap_or_else(|| Status::unavailable(format!("no answer: {}", chain(&error))))
        };
        let channel = endpoint.connect().await.map_err(unavailable)?;
        Ok(InterceptedService::new(channel, self.bearer.clone()))
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

/// What is wrong with a certificate, if that is what an error is about. Trying again would not help.
fn certificate_problem(error: &(dyn StdError + 'static)) -> Option<Status> {
    let problem = |error: &(dyn StdError + 'static)| {
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        if let Some(rustls::Error::InvalidCertificate(problem)) = inner.downcast_ref() {
            return Some(format!("the coordinator's certificate is not good: {problem:?}; --tls-ca says whose are"));
        }
        // Of what comes after the handshake, HTTP/2 keeps no more than the text.
        let text = inner.to_string();
        let alert = text.strip_prefix(ALERT)?;
        Some(format!("the coordinator takes no such certificate as that of --tls-cert: {alert}"))
    };
    std::iter::successors(Some(error), |&error| error.source()).find_map(problem).map(Status::unauthenticated)
}

/// An error and its causes, in one line.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// Adds the token to a call.
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
    fn certificates_and_https_go_together() {
        let missing = || std::path::PathBuf::from("/nowhere/file.pem");
        let files = TlsFiles { tls_ca: missing(), tls_cert: missing(), tls_key: missing() };
        assert!(refusal("http://here:7070", Some(&files)).contains("must begin with https://"));
        assert!(refusal("https://here:7070", None).contains("needs --tls-ca, --tls-cert and --tls-key"));
        assert!(refusal("https://here:7070", Some(&files)).starts_with("/nowhere/file.pem: "));
    }
}
