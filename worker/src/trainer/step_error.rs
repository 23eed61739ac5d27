//! The error of a training step.

use crate::collective::CollectiveError;
use crate::objective::LossError;

/// Why a step was not completed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The generation was abandoned or has failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The gradient is infinite or not a number.
    #[error("the gradient of stage {stage} is not finite at step {step} (loss {loss}): lower its learning rate")]
    GradientNotFinite {
        /// The name of the stage.
        stage: String,
        /// The number of the step in the stage, from 1.
        step: u64,
        /// The mean loss of this rank's share.
        loss: f64,
    },
    /// The batch cannot be loaded, or it does not have what the objective needs.
    #[error(transparent)]
    Batch(#[from] anyhow::Error),
}

impl From<LossError> for StepError {
    fn from(error: LossError) -> Self {
        match error {
            LossError::Collective(error) => Self::Collective(error),
            LossError::Batch(error) => Self::Batch(error),
        }
    }
}
