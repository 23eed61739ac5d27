//! Checks the head of each request before all else: its `Host`, and headers that must not be
//! repeated.
//!
//! A web site can make its own host name resolve to a loopback address (DNS rebinding). A browser
//! on this machine then lets scripts of that site read the web page, captions and images. The
//! browser sends the site's name as `Host`. So a coordinator that listens on the loopback accepts
//! only names and addresses of the loopback. A coordinator that listens on another address cannot
//! know its own names, and accepts all.

use std::net::{IpAddr, SocketAddr};

use axum::{
    Extension,
    extract::{Request, State},
    http::{
        StatusCode, Version,
        header::{AUTHORIZATION, CONTENT_LENGTH, HOST},
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::HttpError;
use crate::service::{
    acceptor::Peer,
    refusals::{RefusalReason, Refusals},
};

/// Headers that a request must not repeat: if there were two values, a proxy could use one, and
/// this server the other.
const UNIQUE_HEADERS: [axum::http::HeaderName; 3] = [HOST, AUTHORIZATION, CONTENT_LENGTH];
/// Maximal number of characters of a refused `Host` in the error; DNS names have at most 253.
const MAX_HOST_LENGTH_IN_ERROR: usize = 253;

/// The values of `Host` that the server accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Names and addresses of the loopback, with any port: behind an SSH tunnel, the browser uses
    /// another port.
    Loopback { port: u16 },
    /// Any name.
    All,
}

impl AllowedHosts {
    /// The accepted values of a server that listens on this address.
    pub fn for_server(bound: SocketAddr) -> Self {
        if bound.ip().to_canonical().is_loopback() { Self::Loopback { port: bound.port() } } else { Self::All }
    }

    /// Checks a `Host`, or the authority of a request target.
    fn check(self, host: &str) -> Result<(), HttpError> {
        match self {
            Self::Loopback { port } if !is_loopback(host) => {
                let host: String = host.escape_debug().take(MAX_HOST_LENGTH_IN_ERROR).collect();
                let message = format!(
                    "this coordinator listens on the loopback only, and does not serve \"{host}\": open \
                     http://localhost:{port}/, configure the proxy in front of it to send `Host: localhost`, or serve \
                     with --http on an address of the network"
                );
                Err(HttpError::new(StatusCode::MISDIRECTED_REQUEST, message))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a host, with or without a port, is a loopback address, or a name that browsers resolve
/// only to one.
fn is_loopback(text: &str) -> bool {
    let is_loopback_address = |address: IpAddr| address.to_canonical().is_loopback();
    if let Ok(address) = text.parse() {
        return is_loopback_address(address);
    }
    let Some(authority) = text.parse::<Authority>().ok().filter(|_| !text.contains('@')) else { return false };
    let host = authority.host();
    let without_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let name = without_brackets.strip_suffix('.').unwrap_or(without_brackets);
    name.eq_ignore_ascii_case("localhost") || without_brackets.parse().is_ok_and(is_loopback_address)
}

/// Checks the head of a request. If it is invalid, the error has the reason for the metrics and the
/// answer.
fn check(hosts: AllowedHosts, request: &Request) -> Result<(), (RefusalReason, HttpError)> {
    let bad_request =
        |message: String| (RefusalReason::UndecodableMessage, HttpError::new(StatusCode::BAD_REQUEST, message));
    let headers = request.headers();
    if let Some(repeated) = UNIQUE_HEADERS.into_iter().find(|name| headers.get_all(name).iter().nth(1).is_some()) {
        return Err(bad_request(format!("the request has more than one header {repeated}: send one")));
    }
    let misdirected = |error| (RefusalReason::UnknownHost, error);
    match headers.get(HOST) {
        Some(host) => hosts.check(&String::from_utf8_lossy(host.as_bytes())).map_err(misdirected)?,
        // HTTP/1.0 does not require the header.
        None if request.version() < Version::HTTP_11 => {}
        None => return Err(bad_request("the request has no header host, which HTTP/1.1 requires".into())),
    }
    // The target of a request takes precedence over its Host (RFC 9112, section 3.2.2).
    request.uri().authority().map_or(Ok(()), |authority| hosts.check(authority.as_str()).map_err(misdirected))
}

/// The data of the middleware [`check_head`].
#[derive(Clone)]
pub struct HeadCheck {
    pub hosts: AllowedHosts,
    pub refusals: Refusals,
}

/// Middleware that refuses requests with a wrong `Host` or a repeated header.
pub async fn check_head(
    State(head_check): State<HeadCheck>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    match check(head_check.hosts, &request) {
        Ok(()) => next.run(request).await,
        Err((reason, error)) => {
            head_check.refusals.record(peer.0, reason, &error.message);
            error.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_on_the_loopback_checks_names() {
        for (bound, expected) in [
            ("127.0.0.1:80", AllowedHosts::Loopback { port: 80 }),
            ("[::1]:80", AllowedHosts::Loopback { port: 80 }),
            ("[::ffff:127.0.0.1]:80", AllowedHosts::Loopback { port: 80 }),
            ("0.0.0.0:80", AllowedHosts::All),
            ("[::]:80", AllowedHosts::All),
            ("10.0.0.1:80", AllowedHosts::All),
        ] {
            assert_eq!(AllowedHosts::for_server(bound.parse().unwrap()), expected, "{bound}");
        }
        assert!(AllowedHosts::All.check("head.example:7071").is_ok());
    }
}
