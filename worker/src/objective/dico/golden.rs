//! One whole step against PyTorch: candidates, rewards, loss, every gradient and every updated parameter.

use std::collections::BTreeMap;

use runfile::EvaluatorScore;
use serde::Deserialize;
use tokenizer::Vocabulary;
use weights::folder;

use super::*;
use crate::captioner::Search;
use crate::captioner::golden as captioner;
use crate::clip::golden as clip;
use crate::golden::{self, Gains, assert_close};
use crate::laps::Laps;
use crate::objective::reward::Judge;
use crate::optimizer::{Adam, Slope};

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
    let golden: Golden = golden::json("dico/dico.json");
    let sizes = &golden.sizes;
    let images = golden.candidates.len() as i64;
    let hidden = captioner::hidden(sizes, (0..images).map(|number| format!("dico.image{number}")));
    let evaluator = clip::by_formula(&golden.evaluator.architecture, &golden.evaluator.prefix);
    let pixels = clip::pixels(&golden.evaluator.architecture, "dico", images);
    let embeddings = no_grad(|| evaluator.embed(&evaluator.vision.hidden(&pixels)));
    let reference = captioner::by_formula(sizes, &golden.reference, &golden.gains);
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
            cider: None,
            weights: &settings.reward,
        };
        let laps = Laps::default();
        let context = Context { reference: &reference, judge, vocabulary: &captioner_vocabulary, search, laps: &laps };
        let numbers: Vec<usize> = (0..images as usize).collect();
        let seen = Images { hidden: &hidden, embeddings: &embeddings, numbers: &numbers };
        let mut policy = captioner::by_formula(sizes, &golden.policy, &golden.gains);
        let candidates = policy.search(&hidden, &context.search);
        let tokens: Vec<Vec<_>> =
            candidates.iter().map(|found| found.iter().map(|candidate| candidate.tokens.clone()).collect()).collect();
        assert_eq!(tokens, golden.candidates);
        let rewards = no_grad(|| context.judge.rewards(&seen, &context.texts(&candidates)));
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
        let difference = counted(name, value - &expected[&format!("{what}.{name}")]);
        assert_close(&format!("{what} of {name}"), &difference, &difference.zeros_like(), 1e-4);
        compared += 1;
    }
    let known = expected.keys().filter(|name| name.starts_with(&format!("{what}."))).count();
    assert_eq!(compared, known, "{what}s");
}
