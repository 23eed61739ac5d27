//! Refusals of join requests, sessions and operators' commands.

/// A request that is refused, and why. Becomes a gRPC status or an HTTP error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Decides the gRPC status code.
    pub kind: RefusalKind,
    /// The reason, as a message for display.
    pub reason: String,
}

impl Refusal {
    /// A refusal with this reason.
    #[must_use]
    pub fn new(kind: RefusalKind, reason: String) -> Self {
        Self { kind, reason }
    }
}

/// Kinds of refusals. Each has the name of its gRPC status code, or names the code in its
/// documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// The message is invalid.
    InvalidArgument,
    /// The peer speaks another version of the protocol, or the run's state does not allow the
    /// request.
    FailedPrecondition,
    /// A live worker has this id.
    AlreadyExists,
    /// The run has `workers.max` live workers.
    ResourceExhausted,
    /// The session token is unknown.
    Unauthenticated,
    /// The coordinator is about to stop. The worker retries: another coordinator may resume the
    /// run.
    Unavailable,
    /// The run is over: `NOT_FOUND`.
    RunOver,
    /// No id is available now, but one may become available: `ABORTED`. The worker retries.
    RetryLater,
    /// The other members compute on another type of device: `PERMISSION_DENIED`.
    DeviceMismatch,
    /// The worker's training state is not part of the run's history: `DATA_LOSS`. The worker
    /// discards that state and joins again.
    ForeignState,
}
