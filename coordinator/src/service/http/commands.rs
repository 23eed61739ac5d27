//! Commands of operators over HTTP: `POST /api/pause`, `resume`, `checkpoint`, `evaluate`, and
//! `drain` with `{"rank": N}`.
//!
//! They require the admin token, `Authorization: Bearer ...`, also on the coordinator's own
//! machine, because any web page in a browser there could send them. A coordinator without such a
//! token refuses all commands. The answer is `{"message": "what will happen"}`.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{FromRequest, Request, State},
    http::StatusCode,
    response::IntoResponse,
    routing::post,
};
use proto::v1::admin_server;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::{AppState, Problem, limits::RequestBody};
use crate::{
    run::Command,
    service::{access::bearer, door::Peer, driver::Input, refusals::Reason},
};

/// Parses a command from the body of a request.
type Read = fn(&[u8]) -> Result<Command, String>;

/// All commands, with their paths below `/api`.
const COMMANDS: [(&str, Read); 5] = [
    ("/pause", |_| Ok(Command::Pause)),
    ("/resume", |_| Ok(Command::Resume)),
    ("/checkpoint", |_| Ok(Command::Checkpoint)),
    ("/evaluate", |_| Ok(Command::Evaluate)),
    ("/drain", drain),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    rank: u32,
}

fn drain(body: &[u8]) -> Result<Command, String> {
    let Drain { rank } = serde_json::from_slice(body).map_err(|_| "drain needs {\"rank\": N}")?;
    Ok(Command::Drain(rank))
}

/// The routes of all commands.
pub fn routes() -> Router<Arc<AppState>> {
    COMMANDS.into_iter().fold(Router::new(), |routes, (path, read)| {
        let handler = async move |State(desk): State<Arc<AppState>>, peer: Extension<Peer>, request: Request| {
            let steered = steer(&desk, read, request).await;
            steered.map_err(|(reason, problem)| {
                desk.refusals.note(peer.0.0, reason, format_args!("/api{path}: {}", problem.why));
                problem
            })
        };
        routes.route(path, post(handler))
    })
}

/// Carries out the command of a request. It checks the token before it reads the body.
async fn steer(desk: &AppState, read: Read, request: Request) -> Result<impl IntoResponse + use<>, (Reason, Problem)> {
    let refuse = |reason, code, why: &str| (reason, Problem::new(code, why));
    let Some(admin) = &desk.tokens.admin else {
        let why = "this coordinator takes no commands here: serve with --admin-token-file or DICO_ADMIN_TOKEN";
        return Err(refuse(Reason::AdminToken, StatusCode::FORBIDDEN, why));
    };
    if !bearer(request.headers()).is_some_and(|presented| admin.equals(presented)) {
        let why = "this coordinator wants its admin token: that of its --admin-token-file or DICO_ADMIN_TOKEN";
        return Err(refuse(Reason::AdminToken, StatusCode::UNAUTHORIZED, why));
    }
    let RequestBody(body) = RequestBody::from_request(request, &()).await.map_err(|problem| match problem.code {
        StatusCode::REQUEST_TIMEOUT => (Reason::Timeout, problem),
        StatusCode::PAYLOAD_TOO_LARGE => (Reason::Oversized, problem),
        _ => (Reason::Malformed, problem),
    })?;
    let command = read(&body).map_err(|why| refuse(Reason::Malformed, StatusCode::BAD_REQUEST, &why))?;
    let over = || Status::unavailable("the coordinator is shutting down");
    let ask = async {
        let (reply, answer) = oneshot::channel();
        desk.driver.send(Input::Control { command, reply }).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())?
    };
    let message = ask.await.map_err(|status: Status| {
        let path = format!("/{}/Control", admin_server::SERVICE_NAME);
        refuse(Reason::of_call(&path, status.code()), code(status.code()), status.message())
    })?;
    Ok(Json(json!({ "message": message })))
}

fn code(code: Code) -> StatusCode {
    match code {
        Code::FailedPrecondition | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
