//! The inputs of the state machine.

use std::{collections::BTreeMap, net::IpAddr};

use proto::{v1, v1::worker_message::Message};

use crate::{
    command::Command,
    image_ranges::ImageRange,
    types::{RequestId, SessionId},
    violation::ProtocolViolation,
};

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
        /// The message. Of `EvaluationItems` the state machine does not need the items.
        message: Message,
    },
    /// The last message in this session violates the protocol: the worker's captions exceed a
    /// limit. An answer to [`Action::KeepCaptions`](crate::action::Action::KeepCaptions).
    Violation {
        /// The session.
        session: SessionId,
        /// What is wrong.
        violation: ProtocolViolation,
    },
    /// The captions of a range are complete and kept: the other answer to
    /// [`Action::KeepCaptions`](crate::action::Action::KeepCaptions).
    CaptionsKept {
        /// The range.
        range: ImageRange,
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
    /// An evaluation is scored: the answer to
    /// [`Action::Score`](crate::action::Action::Score).
    Scored {
        /// The number of the evaluation.
        evaluation: u64,
        /// Caption metrics over all images, by name.
        metrics: BTreeMap<String, f64>,
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
