//! The losses of training stages, one file per objective.
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
//! Every objective returns a *sum* over this rank's samples and the weight to divide it by.
//! Gradients and weights are summed over all ranks before the division, so the update does not
//! depend on how a batch is divided among ranks.

pub mod candidates;
pub mod contrastive;
pub mod cross_entropy;
pub mod dico;
pub mod reward;
pub mod scst;

use std::collections::BTreeMap;

use statistics::Summary;
use tch::Tensor;

/// The candidates of one image with their weights, for display.
pub struct Example {
    /// The index of the image in the training split.
    pub image: usize,
    /// Caption, reward and gamma of each candidate; the gamma of the chosen one is 0.
    pub candidates: Vec<(String, f64, f64)>,
}

/// The result of an objective for this rank's samples.
pub struct Outcome {
    /// The scalar to differentiate: the gradients of all ranks' losses sum up to `weight` times the
    /// gradient of the mean loss.
    pub loss: Tensor,
    /// This rank's part of the global loss sum.
    pub loss_sum: f64,
    /// This rank's part of the global divisor: its number of images or tokens.
    pub weight: f64,
    /// The number of tokens with a loss, end tokens included.
    pub tokens: u64,
    /// The candidates of one image, for display; none if the objective has no weights.
    pub example: Option<Example>,
    /// Summaries over this rank's samples, by the names in [`statistics::names`].
    pub summaries: BTreeMap<&'static str, Summary>,
}
