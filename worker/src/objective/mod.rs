//! What a stage minimises, one file per objective.
//!
//! | file | what is in it |
//! |---|---|
//! | [`contrastive`] | symmetric InfoNCE, for the evaluator |
//! | [`cross_entropy`] | teacher forcing |
//! | [`scst`] | self-critical sequence training |
//! | [`dico`] | direct CLIP-based optimisation |
//! | [`candidates`] | what the last two share: candidates, and how likely policy and reference find them |
//! | [`reward`] | what a candidate is worth |
//!
//! Every objective returns a *sum* over this rank's samples and the weight it is to be divided by. Gradients and weights are
//! summed over all ranks before the division, so the update does not depend on how a batch was shared out.

pub mod candidates;
pub mod contrastive;
pub mod cross_entropy;
pub mod dico;
pub mod reward;
pub mod scst;

use std::collections::BTreeMap;

use statistics::Summary;
use tch::Tensor;

/// How the candidates of an image are weighed.
pub struct Example {
    /// The image's number in the training split.
    pub image: usize,
    /// Caption, reward and gamma of each candidate; the chosen one's gamma is 0.
    pub candidates: Vec<(String, f64, f64)>,
}

/// What an objective says of this rank's samples.
pub struct Outcome {
    /// Scalar to differentiate: the gradients of all ranks' losses add up to `weight` times those of the mean.
    pub loss: Tensor,
    /// This rank's part of the global sum of losses.
    pub loss_sum: f64,
    /// This rank's part of what the sums are divided by (images or tokens).
    pub weight: f64,
    /// Tokens that are learned from, ends included.
    pub tokens: u64,
    /// One image and how its candidates are weighed, for people; where they are.
    pub example: Option<Example>,
    /// Distributions over this rank's samples, under the names of [`statistics::names`].
    pub summaries: BTreeMap<&'static str, Summary>,
}
