//! Violations of the protocol: messages that no correct worker sends; and texts from workers as
//! messages for display.

/// A reason sent by a worker is cut to this number of characters.
const MAX_REASON_CHARS: usize = 500;

/// Why a worker's message violates the protocol. The coordinator closes the worker's session with
/// this reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolViolation(String);

impl ProtocolViolation {
    /// A violation with this reason, as a message for display.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

/// A text from a worker as one line of at most [`MAX_REASON_CHARS`] characters; the rest is cut.
#[must_use]
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_REASON_CHARS).collect()
}
