//! A violation of the protocol by the coordinator.

/// A violation of the protocol by the coordinator, described in one line of limited length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the coordinator broke the protocol: {0}")]
pub struct ProtocolViolation(String);

impl ProtocolViolation {
    /// A violation with this description, of one line.
    #[must_use]
    pub fn new(description: impl Into<String>) -> Self {
        Self(description.into())
    }

    /// The same violation, prefixed with the name of the directive.
    pub(crate) fn in_directive(self, name: &str) -> Self {
        Self(format!("{name}: {}", self.0))
    }
}
