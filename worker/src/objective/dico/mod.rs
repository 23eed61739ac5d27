//! Direct CLIP-based optimization, DiCO (arXiv 2408.14547, section 3).
//!
//! For an image, beam search with the current policy generates candidates y_1 .. y_k with rewards
//! r_1 .. r_k; y_w is the best one. The others have weights gamma_j = softmax_j(tau (r_w - r_j)).
//! With the log-probability ratios d_i = log p(y_i) - log p_ref(y_i),
//!
//! ```text
//! loss = -log sigmoid(beta (d_w - sum_j gamma_j d_j))
//! ```
//!
//! Gradients flow through log p only. Two settings of `config::Dico` are ablations: `weights`
//! selects other gamma_j, and `reference: false` omits log p_ref.

#[cfg(test)]
pub(crate) mod golden;

use config::{Dico, RejectedWeights};
use metric_catalogue::names;
use summary_statistics::Summary;
use tch::{Kind, Tensor, no_grad};

use super::candidates::{CandidateContext, ScoredCandidates, to_doubles};
use super::reward::EncodedImages;
use super::step_context::{StageBatch, StepContext};
use super::{LossError, LossOutput, Objective};
use crate::captioner::Captioner;
use crate::nn::DropoutMode;

impl Objective for Dico {
    fn compute_loss(&self, batch: &StageBatch<'_>, context: &StepContext<'_>) -> Result<LossOutput, LossError> {
        let loss = |policy: &Captioner, images: &EncodedImages<'_>, candidates: &CandidateContext<'_>| {
            compute_loss(policy, images, candidates, self, context.mode)
        };
        Ok(context.with_candidate_context(batch, &self.reward, loss))
    }
}

/// The loss of a batch's images under the current policy.
#[must_use]
pub fn compute_loss(
    policy: &Captioner,
    images: &EncodedImages<'_>,
    context: &CandidateContext<'_>,
    settings: &Dico,
    mode: DropoutMode,
) -> LossOutput {
    let hypotheses = context.generate_candidates(policy, images, Captioner::beam_search);
    let candidates = ScoredCandidates::new(hypotheses, policy, images, context, mode);
    let preference = Preference::new(&candidates.rewards, settings);
    let margin = preference.margin(&match settings.reference {
        true => &candidates.policy_log_probabilities - &candidates.reference_log_probabilities,
        false => candidates.policy_log_probabilities.shallow_clone(),
    });
    let loss = (margin.shallow_clone() * settings.beta).log_sigmoid().sum(Kind::Float).neg();
    let loss_sum = loss.double_value(&[]);
    let mut summaries = no_grad(|| candidates.summaries());
    summaries.insert(names::IMPLICIT_ACCURACY, Summary::of(to_doubles(&margin.gt(0.0))));
    summaries.insert(names::GAMMA_ENTROPY, Summary::of(to_doubles(&preference.entropy())));
    let example = Some(context.first_image_example(images, &candidates, &preference.gamma));
    let (weight, tokens) = (candidates.images_and_candidates().0 as f64, candidates.token_count());
    LossOutput { loss, loss_sum, weight, tokens, example, summaries }
}

/// The chosen candidate of each image, and the weights of its other candidates.
struct Preference {
    /// The index of the chosen candidate, `[images, 1]`.
    chosen: Tensor,
    /// The weights, `[images, candidates]`: 0 for the chosen candidate; the weights of the other
    /// candidates add up to 1.
    gamma: Tensor,
}

impl Preference {
    /// From `rewards` `[images, candidates]`. The first one among several best candidates is
    /// chosen. With [`RejectedWeights::Worst`], the first one among several worst candidates has
    /// all the weight.
    fn new(rewards: &Tensor, settings: &Dico) -> Self {
        let (best, chosen) = rewards.max_dim(1, true);
        let gamma = match settings.weights {
            RejectedWeights::Softmax => softmax_of_others(&((best - rewards) * settings.tau), &chosen),
            RejectedWeights::Uniform => softmax_of_others(&rewards.zeros_like(), &chosen),
            RejectedWeights::Worst => {
                let worst = rewards.scatter_value(1, &chosen, f64::INFINITY).argmin(1, true);
                rewards.zeros_like().scatter_value(1, &worst, 1.0)
            }
        };
        Self { chosen, gamma }
    }

    /// The entropy of each image's weights, in nats, `[images]`.
    fn entropy(&self) -> Tensor {
        -(&self.gamma * self.gamma.clamp_min(1e-30).log()).sum_dim_intlist(1, false, self.gamma.kind())
    }

    /// The margin d_w - sum_j gamma_j d_j, `[images]`; `log_ratios` are the d_i,
    /// `[images, candidates]`.
    fn margin(&self, log_ratios: &Tensor) -> Tensor {
        let chosen = log_ratios.gather(1, &self.chosen, false).squeeze_dim(1);
        chosen - (&self.gamma * log_ratios).sum_dim_intlist(1, false, log_ratios.kind())
    }
}

/// Softmax over all candidates except the chosen one, whose weight is 0. `logits` is `[images,
/// candidates]`, `chosen` is `[images, 1]`.
fn softmax_of_others(logits: &Tensor, chosen: &Tensor) -> Tensor {
    logits.scatter_value(1, chosen, f64::NEG_INFINITY).softmax(1, logits.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss of one image, and its gradient with respect to log p, in plain double precision.
    fn scalar_loss(policy: &[f64], reference: &[f64], rewards: &[f64], beta: f64, tau: f64) -> (f64, Vec<f64>) {
        let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let chosen = rewards.iter().position(|&r| r == best).unwrap();
        let others = || (0..rewards.len()).filter(move |&j| j != chosen);
        let largest = others().map(|j| tau * (best - rewards[j])).fold(f64::NEG_INFINITY, f64::max);
        let weight = |j: usize| (tau * (best - rewards[j]) - largest).exp();
        let total: f64 = others().map(weight).sum();
        let log_ratio = |j: usize| policy[j] - reference[j];
        let margin = log_ratio(chosen) - others().map(|j| weight(j) / total * log_ratio(j)).sum::<f64>();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let derivative = -beta * sigmoid(-beta * margin);
        let gradient = (0..rewards.len())
            .map(|j| if j == chosen { derivative } else { -derivative * weight(j) / total })
            .collect();
        (-sigmoid(beta * margin).ln(), gradient)
    }

    fn settings(tau: f64) -> Dico {
        Dico { tau, ..Dico::default() }
    }

    fn check_loss(policy: &[f64], reference: &[f64], rewards: &[f64], beta: f64, tau: f64) {
        let row = |values: &[f64]| Tensor::from_slice(values).unsqueeze(0);
        let leaf = row(policy).set_requires_grad(true);
        let log_ratios = &leaf - row(reference);
        let margin = Preference::new(&row(rewards), &settings(tau)).margin(&log_ratios);
        let loss = (margin * beta).log_sigmoid().sum(Kind::Double).neg();
        loss.backward();
        let gradient = Vec::<f64>::try_from(leaf.grad().squeeze_dim(0)).unwrap();
        let (expected_loss, expected_gradient) = scalar_loss(policy, reference, rewards, beta, tau);
        assert!((loss.double_value(&[]) - expected_loss).abs() < 1e-12, "{loss:?} is not {expected_loss}");
        for (actual, expected) in gradient.iter().zip(&expected_gradient) {
            assert!((actual - expected).abs() < 1e-12, "{gradient:?} is not {expected_gradient:?}");
        }
    }

    #[test]
    fn loss_and_gradient_equal_a_computation_without_tensors() {
        let policy = [-12.0, -9.5, -14.25, -11.0, -13.5];
        let reference = [-11.5, -10.0, -14.0, -11.75, -13.0];
        check_loss(&policy, &reference, &[0.61, 0.75, 0.58, 0.74, 0.70], 0.2, 300.0);
        check_loss(&policy, &reference, &[0.61, 0.75, 0.58, 0.74, 0.70], 0.2, 1.0);
    }

    #[test]
    fn with_two_candidates_the_rejected_one_has_weight_1() {
        check_loss(&[-5.0, -6.0], &[-5.5, -5.0], &[0.4, 0.7], 0.2, 300.0);
        let gamma = Preference::new(&Tensor::from_slice(&[0.4, 0.7]).unsqueeze(0), &settings(300.0)).gamma;
        assert_eq!(Vec::<f64>::try_from(gamma.squeeze_dim(0)).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn with_equal_rewards_the_first_candidate_is_chosen_and_the_others_have_equal_weights() {
        check_loss(&[-5.0, -6.0, -7.0], &[-5.5, -5.0, -7.5], &[0.5, 0.5, 0.5], 0.2, 300.0);
        let gamma = Preference::new(&Tensor::from_slice(&[0.5, 0.5, 0.5]).unsqueeze(0), &settings(300.0)).gamma;
        assert_eq!(Vec::<f64>::try_from(gamma.squeeze_dim(0)).unwrap(), [0.0, 0.5, 0.5]);
    }

    #[test]
    fn extreme_temperatures_stay_finite() {
        let (policy, reference, rewards) = ([-5.0, -60.0, -7.0], [-5.5, -5.0, -90.0], [0.9, 0.1, 0.5]);
        for tau in [0.0, 1e-6, 1e6, 1e12] {
            check_loss(&policy, &reference, &rewards, 0.2, tau);
        }
        check_loss(&policy, &reference, &rewards, 50.0, 1e6);
    }

    #[test]
    fn ablations_weight_all_rejected_candidates_equally_or_only_the_worst() {
        let gamma = |weights| {
            let settings = Dico { weights, ..Dico::default() };
            let rewards = Tensor::from_slice(&[0.4, 0.7, 0.1, 0.1]).unsqueeze(0);
            Vec::<f64>::try_from(Preference::new(&rewards, &settings).gamma.squeeze_dim(0)).unwrap()
        };
        let third = 1.0 / 3.0;
        assert_eq!(gamma(RejectedWeights::Uniform), [third, 0.0, third, third]);
        assert_eq!(gamma(RejectedWeights::Worst), [0.0, 0.0, 1.0, 0.0]);
        // The softmax weights are between the two.
        let softmax = gamma(RejectedWeights::Softmax);
        assert!((softmax[2] - 0.5).abs() < 1e-12 && softmax[0] < 1e-12, "{softmax:?}");
    }
}
