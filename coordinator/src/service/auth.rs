//! Authorization of gRPC calls: middleware that checks the bearer token of a call before its
//! message is read.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use proto::v1::{admin_server, coordinator_server};
use tonic::{Code, Status};
use transport::Token;

use super::{
    acceptor::Peer,
    refusals::{RefusalReason, Refusals, is_call_of},
};

/// The paths of the calls of the Admin service that only read the status.
const STATUS_PATHS: [&str; 2] = ["/dico.v1.Admin/Status", "/dico.v1.Admin/Watch"];

/// The tokens that gRPC calls and the web page's commands require. Requests for the status require
/// no token.
#[derive(Clone, Default)]
pub struct Tokens {
    /// The token that workers must present. `None`: every peer with a connection may join.
    pub join: Option<Token>,
    /// The token that commands require. `None`: only peers on this machine may send commands, and
    /// only over gRPC.
    pub admin: Option<Token>,
}

impl Tokens {
    /// Checks whether a peer that presents this token, or none, may call `path`.
    ///
    /// # Errors
    /// The peer may not call `path`. The error has the reason for the metrics, and the gRPC status.
    fn check(&self, path: &str, peer: Peer, presented: Option<&str>) -> Result<(), (RefusalReason, Status)> {
        let matches = |token: &Option<Token>| match (token, presented) {
            (Some(token), Some(presented)) => token.matches(presented),
            _ => false,
        };
        let refuse = |reason, status: fn(&'static str) -> Status, message| Err((reason, status(message)));
        if is_call_of(path, coordinator_server::SERVICE_NAME) && self.join.is_some() && !matches(&self.join) {
            let message = "this coordinator requires its join token: pass --join-token-file or DICO_JOIN_TOKEN";
            return refuse(RefusalReason::WrongJoinToken, Status::unauthenticated, message);
        }
        if !is_call_of(path, admin_server::SERVICE_NAME) || STATUS_PATHS.contains(&path) {
            return Ok(());
        }
        match &self.admin {
            Some(_) if matches(&self.admin) => Ok(()),
            Some(_) => {
                let message = "this coordinator requires its admin token: pass --admin-token-file or DICO_ADMIN_TOKEN";
                refuse(RefusalReason::WrongAdminToken, Status::unauthenticated, message)
            }
            None if peer.is_loopback() => Ok(()),
            None => {
                let message = "a coordinator without an admin token accepts commands only from its own machine: to send \
                     them from elsewhere, serve with --admin-token-file";
                refuse(RefusalReason::WrongAdminToken, Status::permission_denied, message)
            }
        }
    }
}

/// The token in `Authorization: Bearer TOKEN`. The scheme is case-insensitive (RFC 9110, section
/// 11.1). A request with two `Authorization` headers has no token.
pub fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

/// The data of the middleware [`authorize`].
#[derive(Clone)]
pub struct AuthLayer {
    pub tokens: Arc<Tokens>,
    pub refusals: Refusals,
}

/// Middleware that refuses calls without the required token. It logs and counts these refusals, and
/// the calls that the services behind it answer with an error. The answer `Aborted`, after which
/// the worker retries, is only logged.
pub async fn authorize(State(auth_layer): State<AuthLayer>, request: Request, next: Next) -> Response {
    let AuthLayer { tokens, refusals } = auth_layer;
    let path = request.uri().path().to_owned();
    let Some(&peer) = request.extensions().get::<Peer>() else {
        return Status::internal("the call has no peer address").into_http::<axum::body::Body>();
    };
    if let Err((reason, status)) = tokens.check(&path, peer, bearer_token(request.headers())) {
        refusals.record(peer.0, reason, status.message());
        return status.into_http::<axum::body::Body>().into_response();
    }
    let response = next.run(request).await;
    if let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok) {
        match status.code() {
            Code::Aborted => refusals.record_retry(peer.0, status.message()),
            code => refusals.record(peer.0, RefusalReason::from_call_status(&path, code), status.message()),
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const JOIN: &str = "/dico.v1.Coordinator/Join";
    const SESSION: &str = "/dico.v1.Coordinator/Session";
    const STATUS: &str = STATUS_PATHS[0];
    const WATCH: &str = STATUS_PATHS[1];
    const CONTROL: &str = "/dico.v1.Admin/Control";

    fn token(text: &str) -> Option<Token> {
        Some(Token::parse(text, "a test").unwrap())
    }

    fn refusal_reason(tokens: &Tokens, path: &str, peer: &str, presented: Option<&str>) -> Option<RefusalReason> {
        tokens.check(path, Peer(peer.parse().unwrap()), presented).err().map(|(reason, _)| reason)
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_duplicate_headers_have_no_token() {
        let token_of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| _ = headers.append(AUTHORIZATION, HeaderValue::from_static(value)));
            bearer_token(&headers).map(str::to_owned)
        };
        for value in ["Bearer a", "bearer a", "BEARER  a"] {
            assert_eq!(token_of(&[value]).as_deref(), Some("a"), "{value}");
        }
        for values in
            [&[][..], &["Basic a"], &["Bearer"], &["Bearera"], &["Bearer a", "Bearer a"], &["Basic x", "Bearer a"]]
        {
            assert_eq!(token_of(values), None, "{values:?}");
        }
    }

    #[test]
    fn each_call_requires_its_token() {
        let (local, remote) = ("[::ffff:127.0.0.1]:9", "10.0.0.2:9");
        let (join, admin) = ("the-token-of-workers", "the-token-of-admins");
        let open = Tokens::default();
        let join_only = Tokens { join: token(join), admin: None };
        let both = Tokens { join: token(join), admin: token(admin) };
        let (bad_join, bad_admin) = (Some(RefusalReason::WrongJoinToken), Some(RefusalReason::WrongAdminToken));
        // The coordinator's tokens, the call, its peer, the presented token, the reason of the
        // refusal.
        let cases = [
            (&open, JOIN, remote, None, None),
            (&open, STATUS, local, None, None),
            (&open, CONTROL, local, None, None),
            (&open, STATUS, remote, None, None),
            (&open, WATCH, remote, None, None),
            (&open, CONTROL, remote, Some(join), bad_admin),
            (&join_only, JOIN, local, None, bad_join),
            (&join_only, JOIN, local, Some("another"), bad_join),
            (&join_only, JOIN, remote, Some(join), None),
            (&join_only, SESSION, remote, None, bad_join),
            (&join_only, SESSION, remote, Some(join), None),
            (&join_only, STATUS, local, None, None),
            (&join_only, STATUS, remote, None, None),
            (&join_only, STATUS, remote, Some(join), None),
            (&join_only, CONTROL, remote, Some(join), bad_admin),
            (&both, JOIN, local, Some(admin), bad_join),
            (&both, STATUS, remote, None, None),
            (&both, STATUS, remote, Some(join), None),
            (&both, STATUS, remote, Some(admin), None),
            (&both, CONTROL, local, None, bad_admin),
            (&both, CONTROL, local, Some(join), bad_admin),
            (&both, CONTROL, remote, Some(admin), None),
        ];
        for (case, (tokens, path, peer, presented, expected)) in cases.into_iter().enumerate() {
            assert_eq!(refusal_reason(tokens, path, peer, presented), expected, "case {case}: {path} from {peer}");
        }
    }
}
