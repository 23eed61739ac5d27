//! The error of a piece of work that was not completed.

use super::step_error::StepError;
use crate::collective::CollectiveError;
use crate::errors;

/// Why a piece of work was not completed.
pub enum DirectiveError {
    /// The generation was abandoned or has failed; the worker can join the next one.
    Collective(CollectiveError),
    /// The rendezvous failed because these peers, by worker id, are unreachable.
    UnreachablePeers(Vec<u32>),
    /// The generation has failed because its checkpoint is missing, damaged or not the expected
    /// one. The next generation may use another checkpoint.
    UnusableCheckpoint { checkpoint: String, reason: String },
    /// The worker process cannot continue, for this reason.
    Fatal(String),
}

impl DirectiveError {
    /// The error of a directive that needs the other ranks, between generations.
    pub fn no_generation() -> Self {
        CollectiveError::Failed("the directive needs a generation, but there is none".into()).into()
    }
}

impl From<CollectiveError> for DirectiveError {
    fn from(error: CollectiveError) -> Self {
        Self::Collective(error)
    }
}

impl From<anyhow::Error> for DirectiveError {
    fn from(error: anyhow::Error) -> Self {
        Self::Fatal(errors::one_line(&error))
    }
}

impl From<StepError> for DirectiveError {
    fn from(error: StepError) -> Self {
        match error {
            StepError::Collective(error) => error.into(),
            StepError::GradientNotFinite { .. } => Self::Fatal(error.to_string()),
            StepError::Batch(error) => error.into(),
        }
    }
}
