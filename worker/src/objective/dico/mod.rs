//! Direct CLIP-based optimisation (arXiv 2408.14547, section 3).
//!
//! For an image, beam search with the current policy proposes candidates y_1 .. y_k with rewards r_1 .. r_k; w is the best.
//! The others are weighed by gamma_j = softmax_j(tau (r_w - r_j)), and with d_i = log p(y_i) - log p_ref(y_i)
//!
//! ```text
//! loss = -log sigmoid(beta (d_w - sum_j gamma_j d_j))
//! ```
//!
//! Gradients flow through log p only.

#[cfg(test)]
mod golden;

use std::collections::{BTreeMap, HashSet};

use statistics::{Summary, names};
use tch::{Kind, Tensor, no_grad};

use super::Outcome;
use crate::captioner::beam::Hypothesis;
use crate::captioner::{Captioner, Captions, Search};
use crate::clip::{Clip, pac_s};
use crate::nn::Mode;
use crate::text::{TokenBatch, Vocabulary};

/// What DiCO needs besides the policy.
pub struct Context<'a> {
    /// The policy as it was when the stage began; keeps it fluent.
    pub reference: &'a Captioner,
    /// Judges the candidates.
    pub evaluator: &'a Clip,
    /// Of policy and reference.
    pub captioner_vocabulary: &'a Vocabulary,
    /// Of the evaluator.
    pub evaluator_vocabulary: &'a Vocabulary,
    /// How candidates are proposed.
    pub search: Search,
    /// beta and tau.
    pub settings: &'a runfile::Dico,
}

/// The loss of some images under the current policy: `vision` are their hidden states, `embeddings` the evaluator's unit
/// embeddings of them, `[images, embedding]`.
#[must_use]
pub fn outcome(policy: &Captioner, vision: &Tensor, embeddings: &Tensor, context: &Context<'_>, mode: Mode) -> Outcome {
    let candidates = policy.search(vision, &context.search);
    let rewards = no_grad(|| rewards(embeddings, &candidates, context));
    let (images, k) = rewards.size2().expect("rewards are [images, candidates]");
    let sequences: Vec<Vec<i64>> = candidates
        .iter()
        .flatten()
        .map(|candidate| {
            std::iter::once(context.captioner_vocabulary.begin()).chain(candidate.tokens.iter().copied()).collect()
        })
        .collect();
    let captions = Captions::new(&sequences, k, context.captioner_vocabulary.pad(), vision.device());
    let reference = no_grad(|| context.reference.token_log_probabilities(vision, &captions, Mode::Evaluate).sums());
    let policy = policy.token_log_probabilities(vision, &captions, mode).sums();
    let difference = (policy - reference).view([images, k]);
    let preference = Preference::new(&rewards, context.settings.tau);
    let margin = preference.margin(&difference);
    let loss = (margin.shallow_clone() * context.settings.beta).log_sigmoid().sum(Kind::Float).neg();
    let loss_sum = loss.double_value(&[]);
    let summaries = no_grad(|| summaries(&rewards, &difference, &margin, &preference, &candidates));
    Outcome { loss, loss_sum, weight: images as f64, summaries }
}

/// PAC-S of every candidate, `[images, candidates]`.
fn rewards(embeddings: &Tensor, candidates: &[Vec<Hypothesis>], context: &Context<'_>) -> Tensor {
    let Context { evaluator, captioner_vocabulary, evaluator_vocabulary, .. } = context;
    let most = evaluator.architecture().text.context_length;
    // Through text, as any evaluator would read it: its tokens need not be the captioner's.
    let texts = candidates.iter().flatten().map(|candidate| captioner_vocabulary.decode(&candidate.tokens));
    let texts: Vec<Vec<i64>> = texts.map(|text| evaluator_vocabulary.encode(&text, most)).collect();
    let texts = TokenBatch::new(&texts, evaluator_vocabulary.end(), embeddings.device());
    let (images, width) = embeddings.size2().expect("embeddings are [images, embedding]");
    pac_s(&embeddings.unsqueeze(1), &evaluator.text.embed(&texts).view([images, -1, width]))
}

/// Which candidate of each image is best, and how the others are weighed against it.
struct Preference {
    /// `[images, 1]`.
    chosen: Tensor,
    /// `[images, candidates]`; 0 for the chosen, adding up to 1 over the others.
    gamma: Tensor,
}

impl Preference {
    /// Of several best candidates the first is chosen.
    fn new(rewards: &Tensor, tau: f64) -> Self {
        let (best, chosen) = rewards.max_dim(1, true);
        let logits = ((best - rewards) * tau).scatter_value(1, &chosen, f64::NEG_INFINITY);
        Self { chosen, gamma: logits.softmax(1, rewards.kind()) }
    }

    /// d_w - sum_j gamma_j d_j, `[images]`.
    fn margin(&self, difference: &Tensor) -> Tensor {
        let chosen = difference.gather(1, &self.chosen, false).squeeze_dim(1);
        chosen - (&self.gamma * difference).sum_dim_intlist(1, false, difference.kind())
    }
}

fn summaries(
    rewards: &Tensor,
    difference: &Tensor,
    margin: &Tensor,
    preference: &Preference,
    candidates: &[Vec<Hypothesis>],
) -> BTreeMap<&'static str, Summary> {
    let values = |tensor: &Tensor| {
        Vec::<f64>::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).expect("a flat tensor of doubles")
    };
    let is_chosen = rewards.zeros_like().scatter_value(1, &preference.chosen, 1.0).to_kind(Kind::Bool);
    let (chosen, rejected) = (rewards.masked_select(&is_chosen), rewards.masked_select(&is_chosen.logical_not()));
    let (images, k) = rewards.size2().expect("rewards are [images, candidates]");
    let mean_rejected = rejected.view([images, k - 1]).mean_dim(1, false, rewards.kind());
    let entropy =
        -(&preference.gamma * preference.gamma.clamp_min(1e-30).log()).sum_dim_intlist(1, false, rewards.kind());
    let lengths = || candidates.iter().flatten().map(|candidate| candidate.tokens.len() as f64);
    BTreeMap::from([
        (names::REWARD_MARGIN, Summary::of(values(&(&chosen - mean_rejected)))),
        (names::REWARD_CHOSEN, Summary::of(values(&chosen))),
        (names::REWARD_REJECTED, Summary::of(values(&rejected))),
        (names::IMPLICIT_ACCURACY, Summary::of(values(&margin.gt(0.0)))),
        (names::KL, Summary::of(values(difference).into_iter().zip(lengths()).map(|(sum, length)| sum / length))),
        (names::GAMMA_ENTROPY, Summary::of(values(&entropy))),
        (names::CAPTION_LENGTH, Summary::of(lengths())),
        (names::REPETITION, Summary::of(candidates.iter().flatten().map(repetition))),
    ])
}

/// Share of tokens that repeat an earlier one.
fn repetition(candidate: &Hypothesis) -> f64 {
    let distinct: HashSet<i64> = candidate.tokens.iter().copied().collect();
    1.0 - distinct.len() as f64 / candidate.tokens.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss of one image and its gradient with respect to log p, in plain double precision.
    fn by_hand(policy: &[f64], reference: &[f64], rewards: &[f64], beta: f64, tau: f64) -> (f64, Vec<f64>) {
        let best = rewards.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let chosen = rewards.iter().position(|&r| r == best).unwrap();
        let others = || (0..rewards.len()).filter(move |&j| j != chosen);
        let largest = others().map(|j| tau * (best - rewards[j])).fold(f64::NEG_INFINITY, f64::max);
        let weight = |j: usize| (tau * (best - rewards[j]) - largest).exp();
        let total: f64 = others().map(weight).sum();
        let difference = |j: usize| policy[j] - reference[j];
        let margin = difference(chosen) - others().map(|j| weight(j) / total * difference(j)).sum::<f64>();
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let slope = -beta * sigmoid(-beta * margin);
        let gradient =
            (0..rewards.len()).map(|j| if j == chosen { slope } else { -slope * weight(j) / total }).collect();
        (-sigmoid(beta * margin).ln(), gradient)
    }

    fn check(policy: &[f64], reference: &[f64], rewards: &[f64], beta: f64, tau: f64) {
        let row = |values: &[f64]| Tensor::from_slice(values).unsqueeze(0);
        let leaf = row(policy).set_requires_grad(true);
        let difference = &leaf - row(reference);
        let margin = Preference::new(&row(rewards), tau).margin(&difference);
        let loss = (margin * beta).log_sigmoid().sum(Kind::Double).neg();
        loss.backward();
        let gradient = Vec::<f64>::try_from(leaf.grad().squeeze_dim(0)).unwrap();
        let (expected_loss, expected_gradient) = by_hand(policy, reference, rewards, beta, tau);
        assert!((loss.double_value(&[]) - expected_loss).abs() < 1e-12, "{loss:?} is not {expected_loss}");
        for (found, expected) in gradient.iter().zip(&expected_gradient) {
            assert!((found - expected).abs() < 1e-12, "{gradient:?} is not {expected_gradient:?}");
        }
    }

    #[test]
    fn loss_and_gradient_are_those_of_a_computation_by_hand() {
        let policy = [-12.0, -9.5, -14.25, -11.0, -13.5];
        let reference = [-11.5, -10.0, -14.0, -11.75, -13.0];
        check(&policy, &reference, &[0.61, 0.75, 0.58, 0.74, 0.70], 0.2, 300.0);
        check(&policy, &reference, &[0.61, 0.75, 0.58, 0.74, 0.70], 0.2, 1.0);
    }

    #[test]
    fn with_two_candidates_the_other_has_all_the_weight() {
        check(&[-5.0, -6.0], &[-5.5, -5.0], &[0.4, 0.7], 0.2, 300.0);
        let gamma = Preference::new(&Tensor::from_slice(&[0.4, 0.7]).unsqueeze(0), 300.0).gamma;
        assert_eq!(Vec::<f64>::try_from(gamma.squeeze_dim(0)).unwrap(), [1.0, 0.0]);
    }

    #[test]
    fn of_equal_rewards_the_first_is_chosen_and_the_rest_share() {
        check(&[-5.0, -6.0, -7.0], &[-5.5, -5.0, -7.5], &[0.5, 0.5, 0.5], 0.2, 300.0);
        let gamma = Preference::new(&Tensor::from_slice(&[0.5, 0.5, 0.5]).unsqueeze(0), 300.0).gamma;
        assert_eq!(Vec::<f64>::try_from(gamma.squeeze_dim(0)).unwrap(), [0.0, 0.5, 0.5]);
    }

    #[test]
    fn extreme_temperatures_stay_finite() {
        let (policy, reference, rewards) = ([-5.0, -60.0, -7.0], [-5.5, -5.0, -90.0], [0.9, 0.1, 0.5]);
        for tau in [0.0, 1e-6, 1e6, 1e12] {
            check(&policy, &reference, &rewards, 0.2, tau);
        }
        check(&policy, &reference, &rewards, 50.0, 1e6);
    }

    #[test]
    fn repetition_counts_tokens_seen_before() {
        let candidate = |tokens: &[i64]| Hypothesis { tokens: tokens.to_vec(), score: 0.0 };
        assert_eq!(repetition(&candidate(&[1, 2, 1, 1])), 0.5);
        assert_eq!(repetition(&candidate(&[])), 1.0);
    }
}
