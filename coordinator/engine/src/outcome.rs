//! How a coordinator process ends.

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

impl Outcome {
    /// The name in the journal.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Failed(_) => "failed",
        }
    }
}
