//! Names of a run's states, as the command line, the HTTP API and the metrics show them.

use std::fmt;

use crate::v1::RunState;

impl RunState {
    /// The name, as operators see it: one word in lower case.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Waiting => "waiting",
            Self::Forming => "forming",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// Whether the run is over: finished or failed.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}
