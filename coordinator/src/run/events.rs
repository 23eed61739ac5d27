//! The inputs and outputs of the state machine: [`Event`]s and [`Action`]s.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use proto::{v1, v1::worker_message::Message};

use super::{Command, Refusal, RequestId, SessionId, captions::EvaluationItem, record::Record};

/// An input of the state machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// A worker asks to join.
    Join {
        /// Identifies the request, for the answer.
        request: RequestId,
        /// The worker's address, for limits; for IPv6 the /64 prefix.
        address: IpAddr,
        /// A new random text. It replaces the idempotency key of a request without one, and so
        /// becomes part of the session token.
        generated_join_key: String,
        /// The worker's request.
        join: v1::JoinRequest,
    },
    /// An admitted worker has opened its session.
    Attach {
        /// The session.
        session: SessionId,
        /// The session's first message, with the session token.
        attach: v1::Attach,
    },
    /// A worker has sent a message in its session.
    Message {
        /// The session.
        session: SessionId,
        /// The message.
        message: Message,
    },
    /// A session has closed.
    Closed {
        /// The session.
        session: SessionId,
    },
    /// An attempt to save the captions of an evaluation has failed, or has succeeded after a failed
    /// one.
    CaptionSaveAttempted {
        /// The number of the evaluation.
        evaluation: u64,
        /// Why saving has failed, as a message for display; none if it has succeeded.
        error: Option<String>,
    },
    /// An evaluation is scored: the answer to [`Action::Score`].
    Scored {
        /// The number of the evaluation.
        evaluation: u64,
        /// Caption metrics over all images, by name.
        metrics: BTreeMap<String, f64>,
        /// The captions of the evaluation, with the scores of each caption added.
        items: Vec<EvaluationItem>,
    },
    /// Time has passed. Sent at regular intervals, so that timeouts are noticed.
    Tick,
    /// An operator sends a command.
    Control {
        /// Identifies the request, for the answer.
        request: RequestId,
        /// The command.
        command: Command,
    },
    /// The coordinator was asked to stop.
    Shutdown,
}

/// An output of the state machine. The service executes actions in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Admit a worker that asked to join.
    Admit {
        /// The join request.
        request: RequestId,
        /// The answer.
        response: v1::JoinResponse,
    },
    /// Accept an operator's command: it is executed, or will be.
    Accept {
        /// The request that contained the command.
        request: RequestId,
        /// What will happen, as a message for display.
        message: String,
    },
    /// Refuse a join request, or an operator's command.
    Refuse {
        /// The request.
        request: RequestId,
        /// The answer.
        refusal: Refusal,
    },
    /// Send a directive to a worker.
    Send {
        /// The worker's session.
        session: SessionId,
        /// The directive.
        directive: v1::Directive,
    },
    /// Close a worker's session after the messages that were sent in it.
    Close {
        /// The worker's session.
        session: SessionId,
        /// The error that the worker gets; none closes the session without an error.
        refusal: Option<Refusal>,
    },
    /// Append a record to the journal. A [`Record::must_be_durable`] record is on disk before the
    /// next action is executed.
    Record(Record),
    /// Save the captions of an evaluation, score them, and report them with [`Event::Scored`].
    /// If they cannot be saved, report that with [`Event::CaptionSaveAttempted`], and retry.
    Score {
        /// The number of the evaluation.
        evaluation: u64,
        /// Its captions, sorted by image name.
        items: Vec<EvaluationItem>,
        /// The path of the file for the captions.
        captions_file: PathBuf,
    },
    /// Delete the checkpoint with this name.
    DeleteCheckpoint(String),
    /// End the coordinator process. Sent once, after the run is over or the coordinator was asked
    /// to stop. With `serve --stay`, the service goes on answering requests after a finished run.
    Exit(Outcome),
}

/// How a coordinator process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The run is complete.
    Finished,
    /// The coordinator was asked to stop; another one can resume the run.
    Stopped,
    /// The run cannot continue, for this reason.
    Failed(String),
}
