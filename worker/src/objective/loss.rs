//! The result that an objective gives to a training step.

use std::collections::BTreeMap;

use summary_statistics::Summary;
use tch::Tensor;

use crate::collective::CollectiveError;

/// An objective could not compute its loss.
#[derive(Debug, thiserror::Error)]
pub enum LossError {
    /// A collective operation has failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// The batch does not have the required images.
    #[error(transparent)]
    Batch(#[from] anyhow::Error),
}

/// The candidates of one image with rewards and weights, which the coordinator's web page shows.
pub struct CandidateExample {
    /// The index of the image in the training split.
    pub image: usize,
    /// Caption, reward and gamma of each candidate. Gamma is the weight of a rejected candidate in
    /// the loss, 0..=1: DiCO's softmax, or in DPO 1 for the worst candidate and 0 for the others.
    /// The gamma of the best candidate is 0.
    pub candidates: Vec<(String, f64, f64)>,
}

/// The result of an objective for this rank's samples.
pub struct LossOutput {
    /// The scalar to differentiate. The sum of all ranks' gradients, divided by the sum of their
    /// weights, is the gradient of the mean loss.
    pub loss: Tensor,
    /// This rank's part of the sum of the loss over all ranks.
    pub loss_sum: f64,
    /// This rank's part of the divisor: its number of images or tokens.
    pub weight: f64,
    /// The number of caption tokens: of those with a loss, end tokens included; in a contrastive
    /// stage of all, begin tokens included.
    pub tokens: u64,
    /// The candidates of one image, which the page shows; none if the objective does not weight
    /// rejected candidates.
    pub example: Option<CandidateExample>,
    /// Summaries over this rank's samples, by the names in [`metric_catalogue::names`].
    pub summaries: BTreeMap<&'static str, Summary>,
}
