//! Self-critical sequence training (Rennie et al., CVPR 2017): REINFORCE on captions that the
//! policy generates. A baseline b is subtracted from each reward r; the loss is the mean over the k
//! candidates y of an image.
//!
//! ```text
//! loss = -(1 / k) sum_i (r_i - b) log p(y_i)
//! ```
//!
//! With beam-search candidates and their mean reward as the baseline this is the loss of M2 (Cornia
//! et al., CVPR 2020, section 3.3). The loss does not depend on the reference policy, which is used
//! only to report the KL divergence.

use config::{Baseline, CandidateKind, Scst};
use tch::{Kind, Tensor, no_grad};

use super::candidates::{CandidateContext, ScoredCandidates};
use super::reward::EncodedImages;
use super::step_context::{StageBatch, StepContext};
use super::{LossError, LossOutput, Objective};
use crate::captioner::{Captioner, GenerationConfig};
use crate::nn::DropoutMode;
use crate::phase_timer::StepPhase;

impl Objective for Scst {
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
    settings: &Scst,
    mode: DropoutMode,
) -> LossOutput {
    let generate = match settings.candidates {
        CandidateKind::Beams => Captioner::beam_search,
        CandidateKind::Samples => Captioner::sample,
    };
    let hypotheses = context.generate_candidates(policy, images, generate);
    let candidates = ScoredCandidates::new(hypotheses, policy, images, context, mode);
    let baseline = match settings.baseline {
        Baseline::Mean => candidates.rewards.mean_dim(1, true, Kind::Float),
        Baseline::Greedy => {
            let greedy = GenerationConfig { beams: 1, ..context.generation };
            let greedy_search = || policy.beam_search(images.hidden, &greedy, DropoutMode::Evaluate);
            let captions = context.timer.time(StepPhase::Search, greedy_search);
            context.rewards(images, &captions)
        }
    };
    let loss = summed_loss(&candidates.policy_log_probabilities, &candidates.rewards, &baseline);
    let (images, _) = candidates.images_and_candidates();
    let loss_sum = loss.double_value(&[]);
    let (tokens, summaries) = (candidates.token_count(), no_grad(|| candidates.summaries()));
    LossOutput { loss, loss_sum, weight: images as f64, tokens, example: None, summaries }
}

/// The loss, summed over images: `log_probabilities` and `rewards` are `[images, candidates]`,
/// `baseline` is `[images, 1]`.
fn summed_loss(log_probabilities: &Tensor, rewards: &Tensor, baseline: &Tensor) -> Tensor {
    let candidates = rewards.size()[1] as f64;
    ((rewards - baseline) * log_probabilities).sum(rewards.kind()) / -candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_equal_a_computation_without_tensors() {
        let rewards = [[0.61, 0.75, 0.58], [0.2, 0.2, 0.5]];
        let log_probabilities = [[-12.0, -9.5, -14.25], [-3.0, -4.0, -5.5]];
        let tensor = |rows: &[[f64; 3]; 2]| Tensor::from_slice(rows.as_flattened()).view([2, 3]);
        for baseline in [[0.1, 0.4], rewards.map(|row| row.iter().sum::<f64>() / 3.0)] {
            let leaf = tensor(&log_probabilities).set_requires_grad(true);
            let actual = summed_loss(&leaf, &tensor(&rewards), &Tensor::from_slice(&baseline).unsqueeze(1));
            actual.backward();
            let gradient = leaf.grad();
            let mut expected = 0.0;
            for image in 0..2 {
                for i in 0..3 {
                    let advantage = rewards[image][i] - baseline[image];
                    expected -= advantage * log_probabilities[image][i] / 3.0;
                    let derivative = gradient.double_value(&[image as i64, i as i64]);
                    assert!((derivative + advantage / 3.0).abs() < 1e-12, "{derivative}");
                }
            }
            assert!((actual.double_value(&[]) - expected).abs() < 1e-12, "{actual:?} is not {expected}");
        }
    }
}
