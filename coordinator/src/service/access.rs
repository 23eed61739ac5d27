//! Who may call what: the first thing that is found out about a call, before its message is read.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::header::AUTHORIZATION,
    middleware::Next,
    response::{IntoResponse, Response},
};
use connection::{Token, bearer};
use proto::v1::{admin_server, coordinator_server};
use tonic::{Code, Status};

use super::{
    door::Peer,
    grpc::STATUS_PATHS,
    refusals::{Reason, Refusals, is_of},
};

/// The tokens that open the services. How the run stands needs none, as on the page.
#[derive(Clone, Default)]
pub struct Tokens {
    /// Lets workers join. Without it, every peer may that gets a connection.
    pub join: Option<Token>,
    /// Lets people and scripts steer the run. Without it, only those on this machine may.
    pub admin: Option<Token>,
}

impl Tokens {
    /// Whether a call of `path` may be made by a peer that presents a token, if it does.
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

/// What stands between the connections and the services.
#[derive(Clone)]
pub struct Reception {
    pub tokens: Arc<Tokens>,
    pub refusals: Refusals,
}

/// Lets a call through if it may be made, and notes it if it is refused, here or behind.
pub async fn receive(State(reception): State<Reception>, request: Request, next: Next) -> Response {
    let Reception { tokens, refusals } = reception;
    let path = request.uri().path().to_owned();
    let Some(&peer) = request.extensions().get::<Peer>() else {
        return Status::internal("a call that came through no connection").into_http::<axum::body::Body>();
    };
    let authorization = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Err((reason, status)) = tokens.check(&path, peer, authorization.and_then(bearer)) {
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
