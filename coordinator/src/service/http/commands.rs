//! Commands from the page: `POST /api/pause`, `resume`, `checkpoint`, `evaluate`, and `drain` with `{"rank": N}`.
//!
//! They need the admin token, `Authorization: Bearer ...`, also on the coordinator's own machine: whatever runs in a browser there
//! could send them. A coordinator without such a token takes none. The answer is `{"message": "what comes of it"}`.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::IntoResponse,
};
use connection::bearer;
use proto::v1::admin_server;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::{Desk, Problem};
use crate::{
    run::Command,
    service::{door::Peer, driver::Input, refusals::Reason},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    rank: u32,
}

/// `POST /api/COMMAND`.
pub async fn answer(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<impl IntoResponse, Problem> {
    let refuse = |reason, code, why: String| {
        desk.refusals.note(peer.0, reason, format_args!("/api/{}: {why}", name.escape_debug()));
        Problem::new(code, why)
    };
    let Some(admin) = &desk.tokens.admin else {
        let why = "this coordinator takes no commands here: serve with --admin-token-file or DICO_ADMIN_TOKEN";
        return Err(refuse(Reason::AdminToken, StatusCode::FORBIDDEN, why.into()));
    };
    let presented = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()).and_then(bearer);
    if !presented.is_some_and(|presented| admin.equals(presented)) {
        let why = "this coordinator wants its admin token: that of its --admin-token-file or DICO_ADMIN_TOKEN";
        return Err(refuse(Reason::AdminToken, StatusCode::UNAUTHORIZED, why.into()));
    }
    let command = read(&name, &body).map_err(|why| refuse(Reason::Malformed, StatusCode::BAD_REQUEST, why))?;
    let over = || Status::unavailable("the coordinator is shutting down");
    let ask = async {
        let (reply, answer) = oneshot::channel();
        desk.driver.send(Input::Control { command, reply }).await.map_err(|_| over())?;
        answer.await.map_err(|_| over())?
    };
    let message = ask.await.map_err(|status: Status| {
        let path = format!("/{}/Control", admin_server::SERVICE_NAME);
        refuse(Reason::of_call(&path, status.code()), code(status.code()), status.message().to_owned())
    })?;
    Ok(Json(json!({ "message": message })))
}

fn read(name: &str, body: &[u8]) -> Result<Command, String> {
    Ok(match name {
        "pause" => Command::Pause,
        "resume" => Command::Resume,
        "checkpoint" => Command::Checkpoint,
        "evaluate" => Command::Evaluate,
        "drain" => {
            let Drain { rank } = serde_json::from_slice(body).map_err(|_| "drain needs {\"rank\": N}")?;
            Command::Drain(rank)
        }
        _ => return Err("there is no such command: pause, resume, checkpoint, evaluate, drain".into()),
    })
}

fn code(code: Code) -> StatusCode {
    match code {
        Code::FailedPrecondition | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::NotFound => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
