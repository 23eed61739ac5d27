//! Self-critical sequence training (Rennie et al., CVPR 2017): REINFORCE on the policy's own
//! captions. Each reward r is compared with a baseline b; the loss is the mean over the candidates
//! of an image.
//!
//! ```text
//! loss = -(1 / k) sum_i (r_i - b) log p(y_i)
//! ```
//!
//! With beam-search candidates and their mean reward as the baseline this is the loss of M2 (Cornia
//! et al., CVPR 2020). The reference policy does not enter the loss; it is used to report the
//! divergence.

use config::{Baseline, Candidates as Source, Scst};
use tch::{Kind, Tensor, no_grad};

use super::Outcome;
use super::candidates::{Candidates, Context, Images};
use crate::captioner::{Captioner, Search};
use crate::nn::Mode;
use crate::phase_timer::StepPhase;

/// The loss of a batch's images under the current policy.
#[must_use]
pub fn outcome(policy: &Captioner, images: &Images<'_>, context: &Context<'_>, settings: &Scst, mode: Mode) -> Outcome {
    let generate = match settings.candidates {
        Source::Beams => Captioner::search,
        Source::Samples => Captioner::sample,
    };
    let found = context.candidates(policy, images, generate);
    let candidates = Candidates::new(found, policy, images, context, mode);
    let baseline = match settings.baseline {
        Baseline::Mean => candidates.rewards.mean_dim(1, true, Kind::Float),
        Baseline::Greedy => {
            let one = Search { beams: 1, ..context.search };
            let greedy = context.timer.time(StepPhase::Search, || policy.search(images.hidden, &one, Mode::Evaluate));
            context.rewards(images, &greedy)
        }
    };
    let loss = loss(&candidates.policy, &candidates.rewards, &baseline);
    let (images, _) = candidates.size();
    let loss_sum = loss.double_value(&[]);
    let (tokens, summaries) = (candidates.tokens(), no_grad(|| candidates.summaries()));
    Outcome { loss, loss_sum, weight: images as f64, tokens, example: None, summaries }
}

/// The loss, summed over images: `log_probabilities` and `rewards` are `[images, candidates]`,
/// `baseline` is `[images, 1]`.
fn loss(log_probabilities: &Tensor, rewards: &Tensor, baseline: &Tensor) -> Tensor {
    let each = rewards.size()[1] as f64;
    ((rewards - baseline) * log_probabilities).sum(rewards.kind()) / -each
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_are_those_of_a_computation_by_hand() {
        let rewards = [[0.61, 0.75, 0.58], [0.2, 0.2, 0.5]];
        let log_probabilities = [[-12.0, -9.5, -14.25], [-3.0, -4.0, -5.5]];
        let tensor = |rows: &[[f64; 3]; 2]| Tensor::from_slice(rows.as_flattened()).view([2, 3]);
        for baseline in [[0.1, 0.4], rewards.map(|row| row.iter().sum::<f64>() / 3.0)] {
            let leaf = tensor(&log_probabilities).set_requires_grad(true);
            let found = loss(&leaf, &tensor(&rewards), &Tensor::from_slice(&baseline).unsqueeze(1));
            found.backward();
            let gradient = leaf.grad();
            let mut expected = 0.0;
            for image in 0..2 {
                for i in 0..3 {
                    let advantage = rewards[image][i] - baseline[image];
                    expected -= advantage * log_probabilities[image][i] / 3.0;
                    let slope = gradient.double_value(&[image as i64, i as i64]);
                    assert!((slope + advantage / 3.0).abs() < 1e-12, "{slope}");
                }
            }
            assert!((found.double_value(&[]) - expected).abs() < 1e-12, "{found:?} is not {expected}");
        }
    }
}
