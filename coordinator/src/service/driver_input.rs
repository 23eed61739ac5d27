//! The inputs of the driver, and its side of a worker's session.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use dico_engine::{Command, Event, SessionId};
use journal::EvaluatedCaption;
use proto::v1;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// A message to the driver, from a gRPC or HTTP call, a signal, or a task that the driver started.
/// The driver answers the variants with a `reply` through that channel.
pub enum DriverInput {
    /// A worker requests to join.
    Join {
        /// The worker's address, for limits; see
        /// [`Peer::client_address`](super::acceptor::Peer::client_address).
        address: IpAddr,
        /// A new random text; see [`Event::Join`].
        generated_join_key: String,
        /// The worker's request.
        join: v1::JoinRequest,
        reply: oneshot::Sender<Result<v1::JoinResponse, Status>>,
    },
    /// A worker opens its session: `attach` is the session's first message.
    Attach { session: SessionId, attach: v1::Attach, handle: SessionHandle },
    /// An event that the driver passes to the run unchanged.
    Event(Event),
    /// An evaluation is scored: the number of the evaluation, its metrics by name, and its captions
    /// with their scores.
    Scored { evaluation: u64, metrics: BTreeMap<String, f64>, captions: Vec<EvaluatedCaption> },
    /// An operator sends a command. The reply is a message that says what will happen.
    Control { command: Command, reply: oneshot::Sender<Result<String, Status>> },
    /// A client requests the status.
    Status { reply: oneshot::Sender<v1::StatusResponse> },
    /// The coordinator is asked to stop, through [`StopHandle`](super::StopHandle).
    Shutdown,
}

/// The driver's side of a worker's session. Dropping it ends the session.
pub struct SessionHandle {
    /// The worker's address, for log lines.
    pub peer: SocketAddr,
    pub directives: mpsc::Sender<Result<v1::Directive, Status>>,
    /// Its drop ends the task that reads the worker's messages.
    pub _close_on_drop: oneshot::Sender<()>,
}
