//! Direct preference optimization, DPO (arXiv 2305.18290, equation 7), on the best and the worst
//! candidate of each image.
//!
//! Beam search with the current policy generates the candidates of an image. y_w is the one with
//! the highest reward, y_l the one with the lowest, each the first among equals. With the
//! log-probability ratios d = log p(y) - log p_ref(y), summed over tokens,
//!
//! ```text
//! loss = -log sigmoid(beta (d_w - d_l))
//! ```
//!
//! Gradients flow through log p only. If all rewards of an image are equal, y_w and y_l are the
//! same candidate, and the image has no gradient.

use config::Preference;
use metric_catalogue::names;
use summary_statistics::Summary;
use tch::{Tensor, no_grad};

use super::candidates::{CandidateContext, ScoredCandidates, to_doubles};
use super::reward::EncodedImages;
use super::step_context::{StageBatch, StepContext};
use super::{LossError, LossOutput, Objective};
use crate::captioner::Captioner;

impl Objective for Preference {
    fn compute_loss(&self, batch: &StageBatch<'_>, context: &StepContext<'_>) -> Result<LossOutput, LossError> {
        let loss = |policy: &Captioner, images: &EncodedImages<'_>, candidate_context: &CandidateContext<'_>| {
            let hypotheses = candidate_context.generate_candidates(policy, images, Captioner::beam_search);
            let candidates = ScoredCandidates::new(hypotheses, policy, images, candidate_context, context.mode);
            let log_ratios = &candidates.policy_log_probabilities - &candidates.reference_log_probabilities;
            let margin = margin(&log_ratios, &candidates.rewards);
            let loss = summed_loss(&margin, self.beta);
            let mut summaries = no_grad(|| candidates.summaries());
            summaries.insert(names::IMPLICIT_ACCURACY, Summary::of(to_doubles(&margin.gt(0.0))));
            let weights = rejected_weights(&candidates.rewards);
            LossOutput {
                loss_sum: loss.double_value(&[]),
                loss,
                weight: candidates.images_and_candidates().0 as f64,
                tokens: candidates.token_count(),
                example: Some(candidate_context.first_image_example(images, &candidates, &weights)),
                summaries,
            }
        };
        Ok(context.with_candidate_context(batch, &self.reward, loss))
    }
}

/// The margin d_w - d_l, `[images]`, from the log-probability ratios and the rewards, both
/// `[images, candidates]`.
fn margin(log_ratios: &Tensor, rewards: &Tensor) -> Tensor {
    let [chosen, rejected] =
        [rewards.argmax(1, true), rewards.argmin(1, true)].map(|index| log_ratios.gather(1, &index, false));
    (chosen - rejected).squeeze_dim(1)
}

/// The loss, summed over images. `margin` is `[images]`.
fn summed_loss(margin: &Tensor, beta: f64) -> Tensor {
    (margin * beta).log_sigmoid().sum(margin.kind()).neg()
}

/// 1 for the rejected candidate of each image and 0 for the others, `[images, candidates]`: what
/// the page shows in the place of DiCO's gamma. If all rewards of an image are equal, no candidate
/// is rejected.
fn rejected_weights(rewards: &Tensor) -> Tensor {
    let [chosen, rejected] = [rewards.argmax(1, true), rewards.argmin(1, true)];
    rewards.zeros_like().scatter_value(1, &rejected, 1.0).scatter_value(1, &chosen, 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss of one image, and its gradient with respect to log p, in plain double precision.
    fn scalar_loss(policy: &[f64], reference: &[f64], rewards: &[f64], beta: f64) -> (f64, Vec<f64>) {
        let first_extreme = |is_better: fn(&f64, &f64) -> bool| {
            (1..rewards.len()).fold(0, |best, i| if is_better(&rewards[i], &rewards[best]) { i } else { best })
        };
        let (chosen, rejected) = (first_extreme(f64::gt), first_extreme(f64::lt));
        let log_ratio = |i: usize| policy[i] - reference[i];
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let margin = log_ratio(chosen) - log_ratio(rejected);
        let derivative = -beta * sigmoid(-beta * margin);
        let mut gradient = vec![0.0; rewards.len()];
        gradient[chosen] += derivative;
        gradient[rejected] -= derivative;
        (-sigmoid(beta * margin).ln(), gradient)
    }

    fn check_loss(policy: &[f64], reference: &[f64], rewards: &[f64], beta: f64) -> f64 {
        let row = |values: &[f64]| Tensor::from_slice(values).unsqueeze(0);
        let leaf = row(policy).set_requires_grad(true);
        let loss = summed_loss(&margin(&(&leaf - row(reference)), &row(rewards)), beta);
        loss.backward();
        let gradient = Vec::<f64>::try_from(leaf.grad().squeeze_dim(0)).unwrap();
        let (expected_loss, expected_gradient) = scalar_loss(policy, reference, rewards, beta);
        let loss = loss.double_value(&[]);
        assert!((loss - expected_loss).abs() < 1e-12, "{loss} is not {expected_loss}");
        for (actual, expected) in gradient.iter().zip(&expected_gradient) {
            assert!((actual - expected).abs() < 1e-12, "{gradient:?} is not {expected_gradient:?}");
        }
        loss
    }

    #[test]
    fn loss_and_gradient_equal_a_computation_without_tensors() {
        let policy = [-12.0, -9.5, -14.25, -11.0, -13.5];
        let reference = [-11.5, -10.0, -14.0, -11.75, -13.0];
        for beta in [0.1, 1.0, 20.0] {
            check_loss(&policy, &reference, &[0.61, 0.75, 0.58, 0.74, 0.70], beta);
        }
        // Several candidates are equally good or bad: the first ones count.
        check_loss(&policy, &reference, &[0.2, 0.7, 0.2, 0.7, 0.2], 0.1);
    }

    #[test]
    fn equal_rewards_give_a_constant_loss() {
        let loss = check_loss(&[-5.0, -6.0, -7.0], &[-5.5, -5.0, -7.5], &[0.5, 0.5, 0.5], 0.1);
        assert!((loss - 2.0_f64.ln()).abs() < 1e-12, "{loss}");
    }

    #[test]
    fn only_the_worst_candidate_is_rejected() {
        let weights = |rewards: &[f64]| {
            Vec::<f64>::try_from(rejected_weights(&Tensor::from_slice(rewards).unsqueeze(0)).squeeze_dim(0)).unwrap()
        };
        assert_eq!(weights(&[0.4, 0.7, 0.1, 0.1]), [0.0, 0.0, 1.0, 0.0]);
        assert_eq!(weights(&[0.5, 0.5, 0.5]), [0.0; 3]);
    }
}
