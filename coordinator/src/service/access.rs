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
    door::Peer,
    grpc::STATUS_PATHS,
    refusals::{Reason, Refusals, is_of},
};

/// The tokens that gRPC calls and the page's commands require. Reading the status requires none.
#[derive(Clone, Default)]
pub struct Tokens {
    /// Required from workers. None: every peer with a connection may join.
    pub join: Option<Token>,
    /// Required for commands. None: only peers on this machine may send commands.
    pub admin: Option<Token>,
}

impl Tokens {
    /// Whether a peer that presents this token, or none, may call `path`. If not, the reason and
    /// the gRPC error.
    fn check(&self, path: &str, peer: Peer, presented: Option<&str>) -> Result<(), (Reason, Status)> {
        let is = |token: &Option<Token>| match (token, presented) {
            (Some(token), Some(presented)) => token.equals(presented),
            _ => false,
        };
        let refuse = |reason, status: fn(&'static str) -> Status, why| Err((reason, status(why)));
        if is_of(path, coordinator_server::SERVICE_NAME) && self.join.is_some() && !is(&self.join) {
            let why = "this coordinator wants its join token: --join-token-file or DICO_JOIN_TOKEN";
            return refuse(Reason::JoinToken, Status::unauthenticated, why);
        }
        if !is_of(path, admin_server::SERVICE_NAME) || STATUS_PATHS.contains(&path) {
            return Ok(());
        }
        match &self.admin {
            Some(_) if is(&self.admin) => Ok(()),
            Some(_) => {
                let why = "this coordinator wants its admin token: --admin-token-file or DICO_ADMIN_TOKEN";
                refuse(Reason::AdminToken, Status::unauthenticated, why)
            }
            None if peer.is_loopback() => Ok(()),
            None => {
                let why = "only the coordinator's own machine may ask this: to ask from elsewhere, serve with \
                     --admin-token-file";
                refuse(Reason::AdminToken, Status::permission_denied, why)
            }
        }
    }
}

/// The token in `Authorization: Bearer TOKEN`. The scheme is case-insensitive (RFC 9110, section 11.1). A request with two such
/// headers has no token.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start_matches(' '))
}

/// The state of [`receive`].
#[derive(Clone)]
pub struct AuthLayer {
    pub tokens: Arc<Tokens>,
    pub refusals: Refusals,
}

/// Middleware that refuses calls without the required token. Logs and counts refusals, its own and
/// those of the services behind it.
pub async fn receive(State(reception): State<AuthLayer>, request: Request, next: Next) -> Response {
    let AuthLayer { tokens, refusals } = reception;
    let path = request.uri().path().to_owned();
    let Some(&peer) = request.extensions().get::<Peer>() else {
        return Status::internal("a call that came through no connection").into_http::<axum::body::Body>();
    };
    if let Err((reason, status)) = tokens.check(&path, peer, bearer(request.headers())) {
        refusals.note(peer.0, reason, status.message());
        return status.into_http::<axum::body::Body>().into_response();
    }
    let response = next.run(request).await;
    if let Some(status) = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok) {
        match status.code() {
            Code::Aborted => refusals.note_retry(peer.0, status.message()),
            code => refusals.note(peer.0, Reason::of_call(&path, code), status.message()),
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

    fn refused(tokens: &Tokens, path: &str, peer: &str, presented: Option<&str>) -> Option<Reason> {
        tokens.check(path, Peer(peer.parse().unwrap()), presented).err().map(|(reason, _)| reason)
    }

    #[test]
    fn the_scheme_is_case_insensitive_and_duplicate_headers_have_no_token() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            values.iter().for_each(|value| _ = headers.append(AUTHORIZATION, HeaderValue::from_static(value)));
            bearer(&headers).map(str::to_owned)
        };
        for value in ["Bearer a", "bearer a", "BEARER  a"] {
            assert_eq!(of(&[value]).as_deref(), Some("a"), "{value}");
        }
        for values in
            [&[][..], &["Basic a"], &["Bearer"], &["Bearera"], &["Bearer a", "Bearer a"], &["Basic x", "Bearer a"]]
        {
            assert_eq!(of(values), None, "{values:?}");
        }
    }

    #[test]
    fn who_may_call_what() {
        let (here, there) = ("[::ffff:127.0.0.1]:9", "10.0.0.2:9");
        let (join, admin) = ("the token of workers", "the token of admins");
        let (join, admin) = (join.replace(' ', "-"), admin.replace(' ', "-"));
        let (join, admin) = (join.as_str(), admin.as_str());
        let open = Tokens::default();
        let joining = Tokens { join: token(join), admin: None };
        let both = Tokens { join: token(join), admin: token(admin) };
        let (no, foreign) = (Some(Reason::JoinToken), Some(Reason::AdminToken));
        let cases = [
            (&open, JOIN, there, None, None),
            (&open, STATUS, here, None, None),
            (&open, CONTROL, here, None, None),
            (&open, STATUS, there, None, None),
            (&open, WATCH, there, None, None),
            (&open, CONTROL, there, Some(join), foreign),
            (&joining, JOIN, here, None, no),
            (&joining, JOIN, here, Some("another"), no),
            (&joining, JOIN, there, Some(join), None),
            (&joining, SESSION, there, None, no),
            (&joining, SESSION, there, Some(join), None),
            (&joining, STATUS, here, None, None),
            (&joining, STATUS, there, None, None),
            (&joining, STATUS, there, Some(join), None),
            (&joining, CONTROL, there, Some(join), foreign),
            (&both, JOIN, here, Some(admin), no),
            (&both, STATUS, there, None, None),
            (&both, STATUS, there, Some(join), None),
            (&both, STATUS, there, Some(admin), None),
            (&both, CONTROL, here, None, foreign),
            (&both, CONTROL, here, Some(join), foreign),
            (&both, CONTROL, there, Some(admin), None),
        ];
        for (case, (tokens, path, peer, presented, expected)) in cases.into_iter().enumerate() {
            assert_eq!(refused(tokens, path, peer, presented), expected, "case {case}: {path} from {peer}");
        }
    }
}
