//! The outputs of the state machine.

use std::path::PathBuf;

use proto::v1;

use crate::{
    image_ranges::ImageRange,
    outcome::Outcome,
    record::Record,
    refusal::Refusal,
    types::{RequestId, SessionId},
};

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
    /// Begin to collect the captions of this evaluation, or continue: drop the captions of ranges
    /// that are not complete, and of all other evaluations.
    CollectCaptions {
        /// The number of the evaluation.
        evaluation: u64,
    },
    /// Keep the captions in the message that was passed in, and answer with
    /// [`Event::CaptionsKept`](crate::event::Event::CaptionsKept) once the range is complete. If
    /// they exceed a limit, answer with [`Event::Violation`](crate::event::Event::Violation).
    /// Captions without this action are dropped.
    KeepCaptions {
        /// The session of the worker that has sent them.
        session: SessionId,
        /// The range of images.
        range: ImageRange,
        /// Whether further captions of the range follow in another message.
        has_more: bool,
    },
    /// Save the captions that were collected, score them, and report the scores with
    /// [`Event::Scored`](crate::event::Event::Scored). If they cannot be saved, report that with
    /// [`Event::CaptionSaveAttempted`](crate::event::Event::CaptionSaveAttempted), and retry.
    Score {
        /// The number of the evaluation.
        evaluation: u64,
        /// The path of the file for the captions.
        captions_file: PathBuf,
    },
    /// Delete the checkpoint with this name.
    DeleteCheckpoint(String),
    /// End the coordinator process. Sent once, after the run is over or the coordinator was asked
    /// to stop. With `serve --stay`, the service goes on answering requests after a finished run.
    Exit(Outcome),
}
