//! One whole step against PyTorch: candidates, rewards, loss, every gradient and every updated parameter.

use std::collections::BTreeMap;

use runfile::EvaluatorScore;
use runfile::{CutCandidates, TextReading};
use scoring::cider::Candidate;
use serde::Deserialize;
use tokenizer::Vocabulary;
use weights::folder;

use super::*;
use crate::captioner::golden as captioner;
use crate::captioner::{Captions, Search};
use crate::clip::golden as clip;
use crate::golden::{self, Gains, assert_close, sixteen_bit_tolerance};
use crate::laps::Laps;
use crate::objective::reward::Judge;
use crate::optimizer::{Adam, Slope};
use crate::testing;

#[derive(Deserialize)]
struct Golden {
    sizes: captioner::Sizes,
    gains: Gains,
    policy: String,
    reference: String,
    evaluator: Evaluator,
    search: Searched,
    beta: f64,
    adam: Settings,
    words: Vec<Word>,
    candidates: Vec<Vec<Vec<i64>>>,
    rewards: Vec<Vec<f64>>,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Evaluator {
    prefix: String,
    architecture: clip::Sizes,
}

#[derive(Deserialize)]
struct Searched {
    beams: usize,
    max_length: usize,
    length_penalty: f64,
    cut_counts_begin: bool,
}

#[derive(Deserialize)]
struct Settings {
    lr: f64,
    betas: [f64; 2],
    eps: f64,
}

#[derive(Deserialize)]
struct Word {
    clip: u16,
}

#[derive(Deserialize)]
struct Step {
    tau: f64,
    margin: Vec<f64>,
    loss: f64,
}

#[test]
fn a_whole_step_is_that_of_pytorch() {
    testing::each_code_path(check_step);
}

fn check_step() {
    let backend = testing::device();
    let golden: Golden = golden::json("dico/dico.json");
    let sizes = &golden.sizes;
    let images = golden.candidates.len() as i64;
    let hidden = captioner::hidden(sizes, (0..images).map(|number| format!("dico.image{number}")));
    let evaluator = clip::by_formula(&golden.evaluator.architecture, &golden.evaluator.prefix, backend);
    let pixels = clip::pixels(&golden.evaluator.architecture, "dico", images);
    let embeddings = no_grad(|| evaluator.embed(&evaluator.vision.hidden(&pixels)));
    let reference = captioner::by_formula(sizes, &golden.reference, &golden.gains, backend);
    let words = golden.words.iter().map(|word| word.clip).collect();
    let captioner_vocabulary = Vocabulary::stored(&folder::Vocabulary::Tokens(words));
    let Searched { beams, max_length, length_penalty, cut_counts_begin } = golden.search;
    for Step { tau, margin, loss } in &golden.steps {
        let search = Search {
            beams,
            max_length,
            length_penalty,
            begin_counts_when_cut: cut_counts_begin,
            begin: sizes.begin,
            end: sizes.end,
        };
        let settings = Dico { beta: golden.beta, tau: *tau, ..Dico::default() };
        let judge = Judge {
            evaluator: &evaluator,
            vocabulary: &Vocabulary::full(),
            score: EvaluatorScore::PacS,
            prefix: "",
            text: TextReading::AsIs,
            cut_candidates: CutCandidates::Closed,
            cider: None,
            weights: &settings.reward,
        };
        let laps = Laps::default();
        let context = Context {
            reference: &reference,
            judge,
            vocabulary: &captioner_vocabulary,
            search,
            candidate_dropout: None,
            laps: &laps,
        };
        let numbers: Vec<usize> = (0..images as usize).collect();
        let seen = Images { hidden: &hidden, embeddings: &embeddings, numbers: &numbers };
        let mut policy = captioner::by_formula(sizes, &golden.policy, &golden.gains, backend);
        let candidates = policy.search(&hidden, &context.search, Mode::Evaluate);
        let tokens: Vec<Vec<_>> =
            candidates.iter().map(|found| found.iter().map(|candidate| candidate.tokens.clone()).collect()).collect();
        assert_eq!(tokens, golden.candidates);
        let rewards = no_grad(|| context.judge.rewards(&seen, &context.decode(&candidates)));
        let expected = Tensor::from_slice2(&golden.rewards);
        assert_close("rewards", &rewards, &expected, 1e-5);

        policy.parameters_mut().start_training();
        let outcome = outcome(&policy, &seen, &context, &settings, Mode::Train { dropout: 0.0 });
        assert!((outcome.loss_sum / outcome.weight - loss).abs() < 1e-4, "{} is not {loss}", outcome.loss_sum);
        let example = outcome.example.as_ref().unwrap();
        let weights: f64 = example.candidates.iter().map(|(.., gamma)| gamma).sum();
        assert!((weights - 1.0).abs() < 1e-6 && example.candidates.len() == golden.rewards[0].len(), "{weights}");
        let accuracy = outcome.summaries[names::IMPLICIT_ACCURACY].mean();
        assert!((accuracy - share(margin, |margin| margin > 0.0)).abs() < 1e-9, "{accuracy}");
        outcome.loss.backward();
        let parameters = policy.parameters();
        let gradient = parameters.gradient().unwrap().values / outcome.weight;
        let expected = golden::tensors(&format!("dico/tau{tau}.safetensors"));
        compare(parameters.views(&gradient), &expected, "gradient", sizes, |_, difference| difference);

        let Settings { lr, betas, eps } = golden.adam;
        let settings =
            runfile::Optimizer { learning_rate: lr, betas, epsilon: eps, weight_decay: 0.0, clip_norm: None };
        Adam::new(parameters, &settings).update(parameters, &Slope::new(&gradient, 1.0), 1, lr);
        if expected.keys().any(|name| name.starts_with("updated.")) {
            let updated = parameters.named().map(|(name, value)| (name, value.shallow_clone()));
            // Adam's first step is nearly the sign of the gradient: where that is nothing but rounding, as of the keys'
            // biases, so is the step.
            compare(updated, &expected, "updated", sizes, |name, difference| {
                difference * expected[&format!("gradient.{name}")].abs().gt(1e-6)
            });
        }
    }
}

/// Of the same candidates, as rounding may lead to others, and with the same rewards, which `tau` multiplies by 300.
#[test]
fn sixteen_bit_rewards_and_gradients_are_as_near_as_rounding_lets_them_be() {
    testing::each_code_path(check_sixteen_bits);
}

fn check_sixteen_bits() {
    let golden: Golden = golden::json("dico/dico.json");
    let (sizes, backend) = (&golden.sizes, testing::sixteen_bits());
    let (images, each) = (golden.candidates.len(), golden.rewards[0].len());
    let hidden = captioner::hidden(sizes, (0..images).map(|number| format!("dico.image{number}")));
    let words = golden.words.iter().map(|word| word.clip).collect();
    let vocabulary = Vocabulary::stored(&folder::Vocabulary::Tokens(words));
    let evaluator = clip::by_formula(&golden.evaluator.architecture, &golden.evaluator.prefix, backend);
    let pixels = clip::pixels(&golden.evaluator.architecture, "dico", images as i64);
    let embeddings = no_grad(|| evaluator.embed(&evaluator.vision.hidden(&pixels)));
    let settings = Dico { beta: golden.beta, ..Dico::default() };
    let judge = Judge {
        evaluator: &evaluator,
        vocabulary: &Vocabulary::full(),
        score: EvaluatorScore::PacS,
        prefix: "",
        text: TextReading::AsIs,
        cut_candidates: CutCandidates::Closed,
        cider: None,
        weights: &settings.reward,
    };
    let numbers: Vec<usize> = (0..images).collect();
    let seen = Images { hidden: &hidden, embeddings: &embeddings, numbers: &numbers };
    let candidate = |tokens: &Vec<i64>| Candidate {
        text: vocabulary.decode(tokens),
        ended: tokens.last() == Some(&vocabulary.end()),
    };
    let candidates = golden.candidates.iter().map(|found| found.iter().map(candidate).collect());
    let rewards = no_grad(|| judge.rewards(&seen, &candidates.collect::<Vec<_>>()));
    let expected = Tensor::from_slice2(&golden.rewards);
    // Twice a cosine of two vectors of length 1, each of a tower with two layers.
    let allowed = 2.0 * sixteen_bit_tolerance(&expected.ones_like(), 2 + 2);
    assert_close("rewards", &rewards, &expected, allowed);

    let reference = captioner::by_formula(sizes, &golden.reference, &golden.gains, backend);
    let sequence = |tokens: &Vec<i64>| std::iter::once(sizes.begin).chain(tokens.iter().copied()).collect();
    let sequences: Vec<Vec<i64>> = golden.candidates.iter().flatten().map(sequence).collect();
    let captions = Captions::new(&sequences, each, testing::device());
    let log_probabilities = |captioner: &Captioner| {
        captioner.token_log_probabilities(&hidden, &captions, Mode::Evaluate).sums().view([images as i64, each as i64])
    };
    for Step { tau, margin, .. } in &golden.steps {
        let mut policy = captioner::by_formula(sizes, &golden.policy, &golden.gains, backend);
        policy.parameters_mut().start_training();
        let rewards = expected.to_kind(Kind::Float).to_device(testing::device());
        let preference = Preference::new(&rewards, &Dico { tau: *tau, ..settings.clone() });
        let difference = log_probabilities(&policy) - no_grad(|| log_probabilities(&reference));
        let found = preference.margin(&difference);
        let expected = Tensor::from_slice(margin);
        // A difference of differences between sums over tokens, of which the reference's are far larger than the margin.
        let summed = no_grad(|| log_probabilities(&reference));
        let longest = sequences.iter().map(Vec::len).max().unwrap() as f64;
        assert_close("margin", &found, &expected, 2.0 * sixteen_bit_tolerance(&summed, 2 + 2) / longest.sqrt());
        // The slope of the loss depends on the margin: with the expected one only what is behind it is compared.
        let slope = (&expected * -golden.beta).sigmoid().to_device(testing::device()) * -golden.beta;
        (found * slope.detach()).sum(Kind::Float).backward();
        let gradient = policy.parameters().gradient().unwrap().values / images as f64;
        let expected = golden::tensors(&format!("dico/tau{tau}.safetensors"));
        let largest = expected.iter().filter(|(name, _)| name.starts_with("gradient."));
        let largest = largest.map(|(_, value)| value.abs().max().double_value(&[])).fold(0.0, f64::max);
        for (name, found) in policy.parameters().views(&gradient) {
            let expected = &expected[&format!("gradient.{name}")];
            let found = found.narrow(0, 0, expected.size()[0]);
            // There and back. Some gradients, as of the keys' biases, are nothing but rounding of larger ones.
            let of_own = sixteen_bit_tolerance(expected, 2 * (2 + 2));
            let of_others = 2.0_f64.powi(-8) * largest;
            assert_close(&format!("gradient of {name}"), &found, expected, of_own + of_others);
        }
    }
}

fn share(values: &[f64], holds: impl Fn(f64) -> bool) -> f64 {
    values.iter().filter(|&&value| holds(value)).count() as f64 / values.len() as f64
}

fn compare<'a>(
    found: impl Iterator<Item = (&'a str, Tensor)>,
    expected: &BTreeMap<String, Tensor>,
    what: &str,
    sizes: &captioner::Sizes,
    counted: impl Fn(&str, Tensor) -> Tensor,
) {
    let mut compared = 0;
    for (name, value) in found {
        // Of the encoder's positions only those that there are hidden states for are kept.
        let positions = name.ends_with("embeddings.position_embeddings.weight");
        let value = if positions { value.narrow(0, 0, sizes.vision_tokens) } else { value };
        let value = value.to_device(tch::Device::Cpu);
        let difference = counted(name, value - &expected[&format!("{what}.{name}")]);
        assert_close(&format!("{what} of {name}"), &difference, &difference.zeros_like(), 1e-4);
        compared += 1;
    }
    let known = expected.keys().filter(|name| name.starts_with(&format!("{what}."))).count();
    assert_eq!(compared, known, "{what}s");
}
