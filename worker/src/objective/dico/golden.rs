//! Tests of the objective against PyTorch: candidates, rewards, weights and loss. Three settings:
//! those of the release, the defaults, and the defaults with cut candidates that are rewarded as if
//! they had ended. The trainer's step is tested in the same settings: `trainer/step/golden.rs`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use caption_metrics::cider::Candidate;
use config::{CutCandidates, Decoding, EvaluatorScore, Objective, RunFile, Stage};
use run_assets::Evaluator;
use serde::Deserialize;
use tokenizer::Vocabulary;
use weights::model_folder;

use super::*;
use crate::captioner::beam::Hypothesis;
use crate::captioner::golden as captioner;
use crate::captioner::{CaptionBatch, GenerationConfig};
use crate::clip::{Clip, golden as clip};
use crate::nn::Backend;
use crate::objective::reward::{EvaluatorReward, RewardModel};
use crate::phase_timer::PhaseTimer;
use crate::run_models::{CaptionerVisionEncoder, RunModels};
use crate::testing;
use crate::testing::golden_files::{self, ParameterGains, assert_close, sixteen_bit_tolerance};

#[derive(Deserialize)]
pub struct GoldenSteps {
    pub sizes: captioner::CaptionerSizes,
    gains: ParameterGains,
    /// The prefixes of the parameter names of policy and reference in the formula.
    policy: String,
    reference: String,
    evaluator: GoldenEvaluator,
    beta: f64,
    pub adam: AdamSettings,
    /// The captioner's vocabulary.
    words: Vec<VocabularyWord>,
    pub settings: Vec<GoldenSetting>,
}

/// The expected results with the settings `name`.
#[derive(Deserialize)]
pub struct GoldenSetting {
    pub name: String,
    cut_candidates: CutCandidates,
    pub search: GoldenSearch,
    candidates: Vec<Vec<Vec<i64>>>,
    rewards: Vec<Vec<f64>>,
    pub steps: Vec<ExpectedStep>,
}

#[derive(Deserialize)]
struct GoldenEvaluator {
    prefix: String,
    architecture: clip::ClipSizes,
}

#[derive(Deserialize)]
pub struct GoldenSearch {
    beams: usize,
    pub max_length: usize,
    length_penalty: f64,
    cut_counts_begin: bool,
}

#[derive(Deserialize)]
pub struct AdamSettings {
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
}

#[derive(Deserialize)]
struct VocabularyWord {
    /// The id of the word in CLIP's vocabulary.
    clip: u16,
}

#[derive(Deserialize)]
pub struct ExpectedStep {
    pub tau: f64,
    chosen: Vec<usize>,
    gamma: Vec<Vec<f64>>,
    margin: Vec<f64>,
    pub loss: f64,
    /// The file with the gradients and, for some steps, the updated parameters.
    tensors: String,
}

impl ExpectedStep {
    /// The gradients, `gradient.{name}`, and for some steps the updated parameters,
    /// `updated.{name}`.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        golden_files::tensors(&format!("dico/{}", self.tensors))
    }
}

impl GoldenSteps {
    pub fn read() -> Self {
        golden_files::json("dico/dico.json")
    }

    /// The models of `run`. Their vision encoder is not used: hidden states are given.
    pub fn models(&self, run: &RunFile, backend: Backend) -> RunModels {
        RunModels {
            primary_clip: clip::clip_by_formula(&self.evaluator.architecture, &self.evaluator.prefix, backend),
            other_clips: Vec::new(),
            vision: CaptionerVisionEncoder::SharedWithEvaluator(0),
            captioner: captioner::captioner_by_formula(&self.sizes, &self.policy, &self.gains, backend),
            captioner_vocabulary: Arc::new(self.vocabulary()),
            evaluators: vec![Evaluator::new(&run.primary_evaluator(), Arc::new(Vocabulary::full()), 0)],
        }
    }

    /// The reference policy.
    pub fn reference(&self, backend: Backend) -> Captioner {
        captioner::captioner_by_formula(&self.sizes, &self.reference, &self.gains, backend)
    }

    /// The captioner's vocabulary.
    fn vocabulary(&self) -> Vocabulary {
        let words = self.words.iter().map(|word| word.clip).collect();
        Vocabulary::from_manifest(&model_folder::Vocabulary::Subset(words))
    }
}

/// The run with the settings `name`: `configs/as-released/coco-dico.yaml`, or that file with the
/// defaults of all settings that the comparison depends on; `closed` differs in `cut_candidates`.
pub fn run(name: &str) -> RunFile {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/as-released/coco-dico.yaml");
    let mut run = RunFile::load(&path).unwrap();
    if name != "release" {
        run.decoding = Decoding::default();
        let score = Some(EvaluatorScore::PacS);
        *run.primary_evaluator_mut() = config::Evaluator { score, ..Default::default() };
        let mut stage = stage(&run).clone();
        stage.objective = Objective::Dico(Dico::default());
        (stage.optimizer, stage.schedule) = (plain_adam(), config::Schedule::default());
        run.stages = vec![stage];
    }
    if name == "closed" {
        run.primary_evaluator_mut().cut_candidates = CutCandidates::Closed;
    }
    run
}

/// The index of the DiCO stage of a run.
pub fn stage_index(run: &RunFile) -> usize {
    run.stages.iter().position(|stage| stage.objective.name() == "dico").unwrap()
}

/// The DiCO stage of a run.
fn stage(run: &RunFile) -> &Stage {
    &run.stages[stage_index(run)]
}

/// The settings of DiCO in that stage.
pub fn settings(run: &RunFile) -> &Dico {
    match &stage(run).objective {
        Objective::Dico(settings) => settings,
        other => panic!("{other:?}"),
    }
}

/// An optimizer with default settings except for the learning rate.
pub fn plain_adam() -> config::Optimizer {
    serde_json::from_str(r#"{ "learning_rate": 1.0 }"#).unwrap()
}

/// The models and images of the golden step.
pub struct StepCase {
    sizes: captioner::CaptionerSizes,
    /// Hidden states of the images, `[images, tokens, width]`.
    pub hidden: Tensor,
    evaluator: Clip,
    /// Embeddings of the images by the evaluator, `[images, embedding]`.
    pub embeddings: [Tensor; 1],
    image_indices: Vec<usize>,
    reference: Captioner,
    vocabulary: Vocabulary,
    evaluator_vocabulary: Vocabulary,
}

impl StepCase {
    pub fn new(golden: &GoldenSteps, backend: Backend) -> Self {
        let sizes = golden.sizes;
        let images = golden.settings[0].candidates.len();
        let hidden = captioner::hidden_states(&sizes, (0..images).map(|number| format!("dico.image{number}")));
        let evaluator = clip::clip_by_formula(&golden.evaluator.architecture, &golden.evaluator.prefix, backend);
        let pixels = clip::pixels(&golden.evaluator.architecture, "dico", images as i64);
        let embeddings = [no_grad(|| evaluator.image_embeddings(&evaluator.vision.hidden_states(&pixels)))];
        Self {
            sizes,
            hidden,
            evaluator,
            embeddings,
            image_indices: (0..images).collect(),
            reference: golden.reference(backend),
            vocabulary: golden.vocabulary(),
            evaluator_vocabulary: Vocabulary::full(),
        }
    }

    fn images(&self) -> EncodedImages<'_> {
        EncodedImages { hidden: &self.hidden, embeddings: &self.embeddings, indices: &self.image_indices }
    }

    /// The evaluators as the trainer creates them.
    fn evaluators<'a>(&'a self, run: &'a RunFile) -> [EvaluatorReward<'a>; 1] {
        let evaluator = run.primary_evaluator();
        [EvaluatorReward {
            name: evaluator.name,
            clip: &self.evaluator,
            vocabulary: &self.evaluator_vocabulary,
            score: evaluator.score(),
            prefix: &evaluator.settings.reward_prefix,
            text: evaluator.settings.reward_text,
            cut_candidates: evaluator.settings.cut_candidates,
        }]
    }

    /// The rewards of candidates with these tokens, `[images, candidates]`.
    fn rewards(&self, run: &RunFile, candidates: &[Vec<Vec<i64>>]) -> Tensor {
        let evaluators = self.evaluators(run);
        let model = RewardModel { evaluators: &evaluators, cider: None, weights: &settings(run).reward };
        no_grad(|| model.rewards(&self.images(), &self.decode(candidates)))
    }

    /// The context as the trainer creates it, but without dropout, whose masks differ from
    /// PyTorch's.
    fn context<'a>(
        &'a self,
        run: &'a RunFile,
        evaluators: &'a [EvaluatorReward<'a>],
        timer: &'a PhaseTimer,
    ) -> CandidateContext<'a> {
        CandidateContext {
            reference: &self.reference,
            reward_model: RewardModel { evaluators, cider: None, weights: &settings(run).reward },
            vocabulary: &self.vocabulary,
            generation: GenerationConfig::new(&run.decoding, &self.vocabulary),
            candidate_dropout: None,
            timer,
        }
    }

    /// The texts of candidates with these tokens.
    fn decode(&self, candidates: &[Vec<Vec<i64>>]) -> Vec<Vec<Candidate>> {
        let candidate = |tokens: &Vec<i64>| Candidate {
            text: self.vocabulary.decode(tokens),
            has_end_token: tokens.last() == Some(&self.vocabulary.end_token()),
        };
        candidates.iter().map(|hypotheses| hypotheses.iter().map(candidate).collect()).collect()
    }
}

#[test]
fn candidates_rewards_and_loss_agree_with_pytorch() {
    testing::each_code_path(|| {
        let golden = GoldenSteps::read();
        let case = StepCase::new(&golden, testing::device().into());
        let names: Vec<&str> = golden.settings.iter().map(|setting| setting.name.as_str()).collect();
        assert_eq!(names, ["release", "default", "closed"]);
        for setting in &golden.settings {
            check_loss(&golden, &case, setting);
        }
    });
}

fn check_loss(golden: &GoldenSteps, case: &StepCase, setting: &GoldenSetting) {
    let sizes = &case.sizes;
    let GoldenSearch { beams, max_length, length_penalty, cut_counts_begin } = setting.search;
    let mut run = run(&setting.name);
    // The golden captioner is small: its captions are cut earlier.
    run.decoding.max_length = max_length as u32;
    let Decoding { beams: run_beams, length_penalty: penalty, cut_length_includes_bos, .. } = run.decoding;
    assert_eq!((run_beams as usize, penalty, cut_length_includes_bos), (beams, length_penalty, cut_counts_begin));
    assert_eq!(
        (run.primary_evaluator().settings.cut_candidates, settings(&run).beta),
        (setting.cut_candidates, golden.beta)
    );
    let is_cut = |tokens: &&Vec<i64>| tokens.last() != Some(&sizes.end);
    let cut = setting.candidates.iter().flatten().filter(is_cut).count();
    assert!(cut > 0 && cut < setting.candidates.iter().flatten().count(), "some candidates are cut, others end");

    for ExpectedStep { tau, chosen, gamma, margin, loss, .. } in &setting.steps {
        let timer = PhaseTimer::default();
        let evaluators = case.evaluators(&run);
        let context = case.context(&run, &evaluators, &timer);
        let settings = Dico { tau: *tau, ..settings(&run).clone() };
        let mut policy = captioner::captioner_by_formula(sizes, &golden.policy, &golden.gains, testing::device());
        let candidates = context.generate_candidates(&policy, &case.images(), Captioner::beam_search);
        let tokens_of = |of_image: &Vec<Hypothesis>| of_image.iter().map(|caption| caption.tokens.clone()).collect();
        let tokens: Vec<Vec<_>> = candidates.iter().map(tokens_of).collect();
        assert_eq!(tokens, setting.candidates);
        let rewards = context.rewards(&case.images(), &candidates);
        assert_close("rewards", &rewards, &Tensor::from_slice2(&setting.rewards), 1e-5);
        let preference = Preference::new(&rewards, &settings);
        assert_eq!(to_doubles(&preference.chosen), chosen.iter().map(|&number| number as f64).collect::<Vec<_>>());
        // gamma depends on the difference of rewards times tau.
        assert_close("gamma", &preference.gamma, &Tensor::from_slice2(gamma), 1e-6 * tau);

        policy.parameters_mut().start_training(|_| true);
        let output = compute_loss(&policy, &case.images(), &context, &settings, DropoutMode::Train { dropout: 0.0 });
        assert!((output.loss_sum / output.weight - loss).abs() < 1e-4, "{} is not {loss}", output.loss_sum);
        let example = output.example.as_ref().unwrap();
        let weights: f64 = example.candidates.iter().map(|(.., gamma)| gamma).sum();
        assert!((weights - 1.0).abs() < 1e-6 && example.candidates.len() == beams, "{weights}");
        let accuracy = output.summaries[names::IMPLICIT_ACCURACY].mean();
        assert!((accuracy - fraction(margin, |margin| margin > 0.0)).abs() < 1e-9, "{accuracy}");
    }
}

/// Shows that [`candidates_rewards_and_loss_agree_with_pytorch`] distinguishes the two values of
/// `cut_candidates`.
#[test]
fn the_other_value_of_cut_candidates_gives_other_rewards_and_weights() {
    let golden = GoldenSteps::read();
    let case = StepCase::new(&golden, testing::device().into());
    for setting in &golden.settings {
        let mut run = run(&setting.name);
        run.primary_evaluator_mut().cut_candidates = match setting.cut_candidates {
            CutCandidates::AsReleased => CutCandidates::Closed,
            CutCandidates::Closed => CutCandidates::AsReleased,
        };
        let rewards = case.rewards(&run, &setting.candidates);
        let largest_difference = |actual: &Tensor, expected: &[Vec<f64>]| {
            let expected = Tensor::from_slice2(expected).to_device(testing::device());
            (actual - expected).abs().max().double_value(&[])
        };
        assert!(largest_difference(&rewards, &setting.rewards) > 0.1, "{}", setting.name);
        for ExpectedStep { tau, gamma, .. } in &setting.steps {
            let settings = Dico { tau: *tau, ..Dico::default() };
            assert!(largest_difference(&Preference::new(&rewards, &settings).gamma, gamma) > 0.1, "{}", setting.name);
        }
    }
}

/// Uses the expected candidates, because rounding may lead to others, and the expected rewards,
/// whose rounding errors would be multiplied by `tau`.
#[test]
fn sixteen_bit_rewards_and_gradients_agree_within_rounding_error() {
    testing::each_code_path(|| {
        let golden = GoldenSteps::read();
        let case = StepCase::new(&golden, testing::bf16_backend());
        for setting in &golden.settings {
            check_sixteen_bits(&golden, &case, setting);
        }
    });
}

fn check_sixteen_bits(golden: &GoldenSteps, case: &StepCase, setting: &GoldenSetting) {
    let (sizes, run) = (&case.sizes, run(&setting.name));
    let (images, per_image) = (setting.candidates.len(), setting.rewards[0].len());
    let rewards = case.rewards(&run, &setting.candidates);
    let expected = Tensor::from_slice2(&setting.rewards);
    // PAC-S is twice a cosine of two unit vectors, each from an encoder with two layers.
    let allowed = 2.0 * sixteen_bit_tolerance(&expected.ones_like(), 2 + 2);
    assert_close("rewards", &rewards, &expected, allowed);

    let sequence = |tokens: &Vec<i64>| std::iter::once(sizes.begin).chain(tokens.iter().copied()).collect();
    let sequences: Vec<Vec<i64>> = setting.candidates.iter().flatten().map(sequence).collect();
    let captions = CaptionBatch::new(&sequences, per_image, testing::device());
    let log_probabilities = |captioner: &Captioner| {
        let token_values = captioner.token_log_probabilities(&case.hidden, &captions, DropoutMode::Evaluate);
        token_values.sums().view([images as i64, per_image as i64])
    };
    let captioner_layers = 2 + 2;
    for step in &setting.steps {
        let ExpectedStep { tau, margin, .. } = step;
        let mut policy = captioner::captioner_by_formula(sizes, &golden.policy, &golden.gains, testing::bf16_backend());
        policy.parameters_mut().start_training(|_| true);
        let rewards = expected.to_kind(Kind::Float).to_device(testing::device());
        let preference = Preference::new(&rewards, &Dico { tau: *tau, ..settings(&run).clone() });
        let log_ratios = log_probabilities(&policy) - no_grad(|| log_probabilities(&case.reference));
        let actual = preference.margin(&log_ratios);
        let expected = Tensor::from_slice(margin);
        // The margin is a difference of differences of sums over tokens. The reference's
        // log-probabilities are far larger than the margin.
        let reference = no_grad(|| log_probabilities(&case.reference));
        let longest = sequences.iter().map(Vec::len).max().unwrap() as f64;
        let allowed = 2.0 * sixteen_bit_tolerance(&reference, captioner_layers) / longest.sqrt();
        assert_close("margin", &actual, &expected, allowed);
        // The gradient of the loss depends on the margin: with the expected margin, only the rest
        // is compared.
        let derivative = (&expected * -golden.beta).sigmoid().to_device(testing::device()) * -golden.beta;
        (actual * derivative.detach()).sum(Kind::Float).backward();
        let gradient = policy.parameters().gradient().unwrap().values / images as f64;
        let expected = step.tensors();
        let largest = expected.iter().filter(|(name, _)| name.starts_with("gradient."));
        let largest = largest.map(|(_, value)| value.abs().max().double_value(&[])).fold(0.0, f64::max);
        for (name, actual) in policy.parameters().trained_views(&gradient) {
            let expected = &expected[&format!("gradient.{name}")];
            let actual = actual.narrow(0, 0, expected.size()[0]);
            // Forward and backward pass. Some gradients, e.g. of the keys' biases, are only
            // rounding error of larger gradients.
            let own_error = sixteen_bit_tolerance(expected, 2 * captioner_layers);
            let error_of_others = 2.0_f64.powi(-8) * largest;
            assert_close(&format!("gradient of {name}"), &actual, expected, own_error + error_of_others);
        }
    }
}

fn fraction(values: &[f64], holds: impl Fn(f64) -> bool) -> f64 {
    values.iter().filter(|&&value| holds(value)).count() as f64 / values.len() as f64
}

/// Compares each tensor `name` with the expected tensor `{kind}.{name}`. `mask` may set differences
/// that do not count to zero.
pub fn compare<'a>(
    actual: impl Iterator<Item = (&'a str, Tensor)>,
    expected: &BTreeMap<String, Tensor>,
    kind: &str,
    sizes: &captioner::CaptionerSizes,
    mask: impl Fn(&str, Tensor) -> Tensor,
) {
    let mut compared = 0;
    for (name, value) in actual {
        // Only the position embeddings that the images use are in the golden file.
        let positions = name.ends_with("embeddings.position_embeddings.weight");
        let value = if positions { value.narrow(0, 0, sizes.vision_tokens) } else { value };
        let value = value.to_device(tch::Device::Cpu);
        let difference = mask(name, value - &expected[&format!("{kind}.{name}")]);
        assert_close(&format!("{kind} of {name}"), &difference, &difference.zeros_like(), 1e-4);
        compared += 1;
    }
    let count = expected.keys().filter(|name| name.starts_with(&format!("{kind}."))).count();
    assert_eq!(compared, count, "{kind}s");
}
