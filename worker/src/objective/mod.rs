//! The losses of training stages, one file per objective.
//!
//! | file | content |
//! |---|---|
//! | [`loss`] | the result of an objective |
//! | [`step_context`] | what a training step gives to an objective: batch, models, data, collective |
//! | [`contrastive`] | symmetric InfoNCE, for the evaluator |
//! | [`cross_entropy`] | teacher forcing |
//! | [`scst`] | self-critical sequence training |
//! | [`dico`] | direct CLIP-based optimization |
//! | [`dpo`] | direct preference optimization |
//! | [`candidates`] | shared by objectives with rewards: candidates, and their log-probabilities under policy and reference |
//! | [`reward`] | the reward model |
//!
//! Every objective returns the *sum* of the loss over this rank's samples and a weight. Gradients
//! and weights are summed over all ranks before the sum of gradients is divided by the sum of
//! weights. So the update does not depend on how a batch is divided among ranks.

pub mod candidates;
pub mod contrastive;
pub mod cross_entropy;
pub mod dico;
pub mod dpo;
pub mod loss;
pub mod reward;
pub mod scst;
pub mod step_context;

pub use loss::{CandidateExample, LossError, LossOutput};
use step_context::{StageBatch, StepContext};

/// An objective, with its settings in the run file. What it needs of the run (rewards, the model
/// that it trains, its samples) the settings say in `config::Objective`.
pub trait Objective {
    /// The loss of the samples of `batch` on this rank, with gradients.
    ///
    /// # Errors
    /// A collective operation fails, or the batch does not have the required images.
    fn compute_loss(&self, batch: &StageBatch<'_>, context: &StepContext<'_>) -> Result<LossOutput, LossError>;
}

impl Objective for config::Objective {
    fn compute_loss(&self, batch: &StageBatch<'_>, context: &StepContext<'_>) -> Result<LossOutput, LossError> {
        match self {
            Self::Contrastive(settings) => settings.compute_loss(batch, context),
            Self::CrossEntropy(settings) => settings.compute_loss(batch, context),
            Self::Scst(settings) => settings.compute_loss(batch, context),
            Self::Dico(settings) => settings.compute_loss(batch, context),
            Self::Dpo(settings) => settings.compute_loss(batch, context),
        }
    }
}
