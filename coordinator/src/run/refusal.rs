//! Refusals of joins, sessions and commands.

/// A request that is refused, and why. Becomes a gRPC status or an HTTP error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind, which decides the gRPC status code.
    pub kind: RefusalKind,
    /// The reason, as a message for display.
    pub reason: String,
}

impl Refusal {
    pub(crate) fn new(kind: RefusalKind, reason: String) -> Self {
        Self { kind, reason }
    }
}

/// Kinds of refusals. The first ones have the names of their gRPC status codes; the last four name
/// the code in their documentation.
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
    /// The coordinator is about to stop.
    Unavailable,
    /// The run is over: `NOT_FOUND`.
    RunOver,
    /// No id is free now, but one may become free: `ABORTED`. The worker retries.
    RetryLater,
    /// The other members compute on another type of device: `PERMISSION_DENIED`.
    DeviceMismatch,
    /// The worker's state is not part of the run's history: `DATA_LOSS`. The worker discards its
    /// state and joins again.
    ForeignState,
}
