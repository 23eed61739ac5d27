//! Commands of operators over HTTP: `POST /api/pause`, `resume`, `checkpoint`, `evaluate`, and
//! `drain` with `{"rank": N}`.
//!
//! They require the admin token, `Authorization: Bearer ...`, also on the coordinator's own
//! machine, because any web page in a browser there could send them. A coordinator without such a
//! token refuses all commands over HTTP. The answer is `{"message": "what will happen"}`.

use std::sync::Arc;

use axum::{
    Extension, Json, Router,
    extract::{FromRequest, Request, State},
    http::StatusCode,
    response::IntoResponse,
    routing::post,
};
use dico_engine::{Command, WorkerId};
use proto::v1::admin_server;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::{app_state::AppState, error::HttpError, limits::RequestBody};
use crate::service::{acceptor::Peer, auth::bearer_token, driver_input::DriverInput, refusals::RefusalReason};

/// Parses a command from the body of a request.
type ParseCommand = fn(&[u8]) -> Result<Command, HttpError>;

/// All commands, with their paths below `/api`.
const COMMANDS: [(&str, ParseCommand); 5] = [
    ("/pause", |_| Ok(Command::Pause)),
    ("/resume", |_| Ok(Command::Resume)),
    ("/checkpoint", |_| Ok(Command::Checkpoint)),
    ("/evaluate", |_| Ok(Command::Evaluate)),
    ("/drain", parse_drain),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DrainBody {
    /// The worker id.
    rank: u32,
}

fn parse_drain(body: &[u8]) -> Result<Command, HttpError> {
    let DrainBody { rank } = serde_json::from_slice(body)
        .map_err(|_| HttpError::new(StatusCode::BAD_REQUEST, "drain requires the body {\"rank\": N}"))?;
    Ok(Command::Drain(WorkerId(rank)))
}

/// The routes of all commands.
pub fn routes() -> Router<Arc<AppState>> {
    COMMANDS.into_iter().fold(Router::new(), |routes, (path, parse)| {
        let handler = async move |State(app_state): State<Arc<AppState>>, peer: Extension<Peer>, request: Request| {
            let answer = send_command(&app_state, parse, request).await;
            answer.map_err(|(reason, error)| {
                app_state.refusals.record(peer.0.0, reason, format_args!("/api{path}: {}", error.message));
                error
            })
        };
        routes.route(path, post(handler))
    })
}

/// Sends the command of a request to the run, and returns the run's answer. Checks the token before
/// it reads the body. If the command is refused, the error has the reason for the metrics and the
/// answer.
async fn send_command(
    app_state: &AppState,
    parse: ParseCommand,
    request: Request,
) -> Result<impl IntoResponse + use<>, (RefusalReason, HttpError)> {
    let refuse = |reason, code, message: &str| (reason, HttpError::new(code, message));
    let Some(admin) = &app_state.tokens.admin else {
        let message = "a coordinator without an admin token accepts no commands over HTTP: serve with --admin-token-file \
                       or DICO_ADMIN_TOKEN";
        return Err(refuse(RefusalReason::WrongAdminToken, StatusCode::FORBIDDEN, message));
    };
    if !bearer_token(request.headers()).is_some_and(|presented| admin.matches(presented)) {
        let message = "this coordinator requires its admin token, from its --admin-token-file or DICO_ADMIN_TOKEN";
        return Err(refuse(RefusalReason::WrongAdminToken, StatusCode::UNAUTHORIZED, message));
    }
    let RequestBody(body) = RequestBody::from_request(request, &()).await.map_err(|error| match error.code {
        StatusCode::REQUEST_TIMEOUT => (RefusalReason::BodyTimeout, error),
        StatusCode::PAYLOAD_TOO_LARGE => (RefusalReason::OversizedMessage, error),
        _ => (RefusalReason::UndecodableMessage, error),
    })?;
    let command = parse(&body).map_err(|error| (RefusalReason::UndecodableMessage, error))?;
    let shutting_down = || Status::unavailable("the coordinator is shutting down");
    let send = async {
        let (reply, answer) = oneshot::channel();
        app_state.driver.send(DriverInput::Control { command, reply }).await.map_err(|_| shutting_down())?;
        answer.await.map_err(|_| shutting_down())?
    };
    let message = send.await.map_err(|status: Status| {
        let path = format!("/{}/Control", admin_server::SERVICE_NAME);
        refuse(RefusalReason::from_call_status(&path, status.code()), http_code(status.code()), status.message())
    })?;
    Ok(Json(json!({ "message": message })))
}

/// The HTTP status code for a gRPC status code.
fn http_code(code: Code) -> StatusCode {
    match code {
        Code::FailedPrecondition | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
