//! Violations of the protocol: messages that no correct worker sends.

/// Why a worker's message violates the protocol. The coordinator closes the worker's session with
/// this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolViolation(String);

impl ProtocolViolation {
    /// A violation with this reason, as a message for display.
    pub(super) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
