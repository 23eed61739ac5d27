//! `worker bench step`: measures DiCO steps at the size of the paper's models.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::ValueEnum;
use config::{CutCandidates, Dico, EvaluatorScore, Optimizer, Precision, Preset, ProjectionInit, TextReading};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::clip::{ClipConfig, TextConfig, VisionBackbone};
use weights::{Normalization, model_folder};

use super::trace::trace;
use super::{ranks, synchronize_device};
use crate::captioner::beam::Hypothesis;
use crate::captioner::{self, CaptionBatch, Captioner, GenerationConfig};
use crate::cli::device_options::DeviceOptions;
use crate::clip::{self, Clip};
use crate::collective::Collective;
use crate::data::normalize;
use crate::nn::{Backend, DropoutMode, GradientBuffer};
use crate::objective::candidates::CandidateContext;
use crate::objective::dico;
use crate::objective::reward::{EncodedImages, EvaluatorReward, RewardModel};
use crate::optimizer::{Adam, AveragedGradient};
use crate::phase_timer::PhaseTimer;

/// Number of steps that are not measured: the first ones allocate memory and select kernels.
const WARM_UP_STEPS: usize = 2;
/// The seeds of the random weights and images.
const VISION_SEED: u64 = 1;
const EVALUATOR_SEED: u64 = 2;
const CAPTIONER_SEED: u64 = 3;
const PIXELS_SEED: i64 = 4;
const DROPOUT: f64 = 0.1;
const LEARNING_RATE: f64 = 1e-6;
/// Minimal number of images whose candidates are ranked with bf16 and with f32 products.
const MIN_RANKED_IMAGES: usize = 64;

/// Measure DiCO steps at the size of the paper's models, from images to the update.
///
/// A step generates candidates, computes rewards and log-probabilities, and updates the captioner.
/// Weights and pixels are random, so captions rarely end before --max-length. Prints images per
/// second and the duration of each phase.
#[derive(clap::Args)]
#[command(after_help = "Example: worker bench step --batch 8 --steps 10 --min-length 30 --device cuda:0 --json")]
pub struct StepBench {
    /// Batch size: images per step and rank.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Number of beams: candidates per image.
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u16).range(2..=64))]
    beams: u16,
    /// Maximal length of a caption in tokens, begin and end tokens included.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=77))]
    max_length: u16,
    /// Minimal length of a caption; must equal --max-length. All captions then have this length, so
    /// that the amount of work does not depend on the weights.
    #[arg(long, value_name = "N")]
    min_length: Option<u16>,
    /// Vision encoder of the captioner.
    #[arg(long, default_value = "vit-b-32", value_name = "ENCODER")]
    vision: VisionEncoderPreset,
    /// Compute the outputs of the frozen vision encoders once, as if from a feature store.
    #[arg(long)]
    cached_features: bool,
    /// Vocabulary of the captioner: full, or this number of CLIP's tokens.
    #[arg(long, default_value = "full", value_parser = parse_vocabulary, value_name = "full|N")]
    vocabulary: model_folder::Vocabulary,
    /// Precision of matrix products.
    #[arg(long, default_value = "f32", value_parser = parse_precision, value_name = "f32|bf16")]
    precision: Precision,
    /// Number of measured steps.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// World size: number of ranks, each a process with its own batch. Gradients are summed over
    /// all ranks.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    world: u16,
    /// Trace one more step on CPU and GPU, and write the trace to a file for Perfetto or
    /// chrome://tracing.
    #[arg(long, value_name = "FILE", conflicts_with = "world")]
    trace: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceOptions,
}

/// The size of a CLIP vision encoder.
#[derive(Clone, Copy, ValueEnum)]
enum VisionEncoderPreset {
    #[value(name = "vit-b-32")]
    VitB32,
    #[value(name = "vit-l-14")]
    VitL14,
    #[value(name = "rn50")]
    Rn50,
}

fn parse_precision(text: &str) -> Result<Precision> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        _ => bail!("expected f32 or bf16"),
    }
}

fn parse_vocabulary(text: &str) -> Result<model_folder::Vocabulary> {
    if text == "full" {
        return Ok(model_folder::Vocabulary::Full);
    }
    match text.parse() {
        Ok(tokens @ 100..=49_406_u16) => Ok(model_folder::Vocabulary::Subset((0..tokens).collect())),
        _ => bail!("expected full or a number in 100..=49406"),
    }
}

/// The duration of each phase of a step in seconds, measured separately; `learn` is the rest of the
/// step.
#[derive(Serialize, Deserialize)]
struct PhaseSeconds {
    vision: f64,
    beam_search: f64,
    reward: f64,
    reference: f64,
    learn: f64,
    all_reduce: f64,
}

/// The measurements of a rank.
#[derive(Serialize, Deserialize)]
struct Measurements {
    /// The duration of each step, in order.
    seconds: Vec<f64>,
    phases: PhaseSeconds,
    /// The peak resident memory of the process, in bytes.
    peak_memory: Option<u64>,
    /// The share of images whose candidates have the same ranking with f32 products; none if
    /// products are f32.
    same_ranking: Option<f64>,
}

/// The models of a rank, of the size of the paper's models, and the rank's batch.
struct RankBench<'a> {
    device: Device,
    collective: &'a dyn Collective,
    vision_encoder: Clip,
    evaluator: Clip,
    policy: Captioner,
    reference: Captioner,
    optimizer: Adam,
    /// Bytes `[batch, size, size, 3]` in CPU memory.
    pixels: Tensor,
    /// The outputs of the vision encoders, with `--cached-features`.
    cached_features: Option<VisionFeatures>,
    image_indices: Vec<usize>,
    vocabulary: Vocabulary,
    evaluator_vocabulary: Vocabulary,
    generation_config: GenerationConfig,
    settings: Dico,
    /// Its measurements are not used: on a GPU they show when work is queued, not when the work
    /// completes.
    timer: PhaseTimer,
}

impl StepBench {
    /// Runs the command.
    ///
    /// # Errors
    /// An option is invalid, or a rank fails.
    pub fn run(self) -> Result<()> {
        let device = self.device.initialize()?;
        if self.min_length.is_some_and(|length| length != self.max_length) {
            bail!("--min-length must equal --max-length, {}", self.max_length);
        }
        let measurements = ranks::run(self.world, device, |device, collective| self.measure(device, collective))?;
        // Ranks wait for each other in each step, so the durations are nearly equal on all ranks.
        let Measurements { mut seconds, phases, peak_memory, same_ranking } =
            measurements.into_iter().next().expect("there is a rank 0");
        seconds.sort_by(f64::total_cmp);
        let step = seconds[seconds.len() / 2];
        let images_per_second = f64::from(self.batch) * f64::from(self.world) / step;
        if self.json {
            crate::cli::print(format_args!(
                "{}",
                json!({
                    "images_per_s": images_per_second,
                    "step_s": step,
                    "phases": phases,
                    "steps_s": seconds,
                    "device": format!("{device:?}"),
                    "threads": tch::get_num_threads(),
                    "world": self.world,
                    "peak_memory_bytes": peak_memory,
                    "same_ranking": same_ranking,
                })
            ))?;
            return Ok(());
        }
        let PhaseSeconds { vision, beam_search, reward, reference, learn, all_reduce } = phases;
        crate::cli::print(format_args!(
            "{images_per_second:.2} images/s; a step takes {step:.4} s, the median of {}",
            self.steps
        ))?;
        crate::cli::print(format_args!(
            "vision {vision:.4}, beam search {beam_search:.4}, reward {reward:.4}, reference {reference:.4}, learn {learn:.4}, \
             all-reduce {all_reduce:.4}"
        ))?;
        if let Some(share) = same_ranking {
            crate::cli::print(format_args!(
                "the ranking of candidates equals that with f32 products for {:.1} % of images",
                100.0 * share
            ))?;
        }
        Ok(())
    }

    /// Runs the measurement on one rank.
    fn measure(&self, device: Device, collective: &dyn Collective) -> Result<Measurements> {
        let mut bench = self.build(device, collective);
        (1..=WARM_UP_STEPS as u64).try_for_each(|step| bench.train_step(step))?;
        let mut seconds = Vec::new();
        for step in 1..=u64::from(self.steps) {
            let (elapsed, result) = bench.timed(|bench| bench.train_step(step + WARM_UP_STEPS as u64));
            result?;
            seconds.push(elapsed);
        }
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let peak_memory = peak_memory();
        let phases = bench.phases(sorted[sorted.len() / 2])?;
        if let Some(path) = &self.trace {
            trace(device, path, || bench.train_step(1 + seconds.len() as u64 + WARM_UP_STEPS as u64))?;
        }
        let same_ranking = (self.precision != Precision::F32).then(|| bench.same_ranking());
        Ok(Measurements { seconds, phases, peak_memory, same_ranking })
    }

    /// Builds the models and a random batch.
    fn build<'a>(&self, device: Device, collective: &'a dyn Collective) -> RankBench<'a> {
        let (vocabulary, evaluator_vocabulary) = (Vocabulary::from_manifest(&self.vocabulary), Vocabulary::full());
        let backend = Backend { device, precision: self.precision };
        let vision_encoder = Clip::new(self.vision.config(), VISION_SEED, backend);
        let evaluator = build_evaluator(&evaluator_vocabulary, backend);
        let (width, tokens) =
            (vision_encoder.config().vision_width(), vision_encoder.config().vision_sequence_length());
        let config = captioner::preset(Preset::Dico, width, tokens, vocabulary.size() as usize);
        let mut policy = Captioner::new(config, ProjectionInit::default(), CAPTIONER_SEED, backend);
        let reference = policy.frozen_copy();
        policy.parameters_mut().start_training(|_| true);
        let settings = Optimizer {
            learning_rate: LEARNING_RATE,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: None,
        };
        let optimizer = Adam::new(policy.parameters(), &settings);
        let side = vision_encoder.config().image_size as i64;
        tch::manual_seed(PIXELS_SEED + collective.rank() as i64);
        let pixels = Tensor::randint(256, [i64::from(self.batch), side, side, 3], (Kind::Uint8, Device::Cpu));
        let generation_config = GenerationConfig {
            beams: self.beams.into(),
            max_length: self.max_length.into(),
            length_penalty: 1.0,
            cut_length_includes_bos: false,
            bos_token_id: vocabulary.begin_token(),
            // No token has this id.
            eos_token_id: if self.min_length.is_some() { -1 } else { vocabulary.end_token() },
        };
        let image_indices = (0..self.batch.into()).collect();
        let settings = Dico { reward: BTreeMap::from([(EvaluatorScore::PacS.into(), 1.0)]), ..Dico::default() };
        let mut bench = RankBench {
            device,
            collective,
            vision_encoder,
            evaluator,
            policy,
            reference,
            optimizer,
            pixels,
            cached_features: None,
            image_indices,
            vocabulary,
            evaluator_vocabulary,
            generation_config,
            settings,
            timer: PhaseTimer::default(),
        };
        bench.cached_features = self.cached_features.then(|| bench.encode_images());
        bench
    }
}

/// The outputs of the frozen vision encoders.
struct VisionFeatures {
    /// Hidden states of the captioner's vision encoder.
    hidden: Tensor,
    /// Embeddings by the evaluator.
    embeddings: Tensor,
}

impl RankBench<'_> {
    /// The outputs of the frozen vision encoders for the batch.
    fn encode_images(&self) -> VisionFeatures {
        if let Some(VisionFeatures { hidden, embeddings }) = &self.cached_features {
            return VisionFeatures { hidden: hidden.shallow_clone(), embeddings: embeddings.shallow_clone() };
        }
        let images = normalize(&self.pixels, 0..self.image_indices.len(), self.device, &Normalization::default());
        no_grad(|| {
            let hidden = self.vision_encoder.vision.hidden_states(&images);
            let evaluator_hidden = self.evaluator.vision.hidden_states(&images);
            VisionFeatures { hidden, embeddings: self.evaluator.image_embeddings(&evaluator_hidden) }
        })
    }

    /// The reward: PAC-S by this evaluator.
    fn pac_s_reward<'b>(&'b self, evaluator: &'b Clip) -> [EvaluatorReward<'b>; 1] {
        [EvaluatorReward {
            name: EvaluatorScore::PacS.name(),
            clip: evaluator,
            vocabulary: &self.evaluator_vocabulary,
            score: EvaluatorScore::PacS,
            prefix: "",
            text: TextReading::AsIs,
            cut_candidates: CutCandidates::Closed,
        }]
    }

    fn context<'b>(&'b self, evaluators: &'b [EvaluatorReward<'b>]) -> CandidateContext<'b> {
        CandidateContext {
            reference: &self.reference,
            reward_model: RewardModel { evaluators, cider: None, weights: &self.settings.reward },
            vocabulary: &self.vocabulary,
            generation: self.generation_config,
            candidate_dropout: None,
            timer: &self.timer,
        }
    }

    /// Runs update `step` (from 1).
    fn train_step(&mut self, step: u64) -> Result<()> {
        let VisionFeatures { hidden, embeddings } = self.encode_images();
        let images = EncodedImages { hidden: &hidden, embeddings: &[embeddings], indices: &self.image_indices };
        let GradientBuffer { buffer, values: mut gradient, .. } = self.gradient();
        _ = gradient.zero_();
        let mode = DropoutMode::Train { dropout: DROPOUT };
        let evaluators = self.pac_s_reward(&self.evaluator);
        let output = dico::compute_loss(&self.policy, &images, &self.context(&evaluators), &self.settings, mode);
        output.loss.backward();
        self.collective.all_reduce(&buffer)?;
        let average = AveragedGradient::new(&gradient, output.weight * self.collective.world_size() as f64);
        self.optimizer.update(self.policy.parameters(), &average, step, LEARNING_RATE);
        Ok(())
    }

    fn gradient(&self) -> GradientBuffer {
        self.policy.parameters().gradient().expect("the policy is in training")
    }

    /// The duration of `compute` in seconds, until the device has completed its work, and its
    /// result.
    fn timed<T>(&mut self, compute: impl FnOnce(&mut Self) -> T) -> (f64, T) {
        synchronize_device(self.device);
        let started_at = Instant::now();
        let result = compute(self);
        synchronize_device(self.device);
        (started_at.elapsed().as_secs_f64(), result)
    }

    /// Measures each phase. `step` is the duration of a step in seconds.
    fn phases(&mut self, step: f64) -> Result<PhaseSeconds> {
        let (vision, VisionFeatures { hidden, embeddings }) = self.timed(|bench| bench.encode_images());
        let (beam_search, candidates) =
            self.timed(|bench| bench.policy.beam_search(&hidden, &bench.generation_config, DropoutMode::Evaluate));
        let begin = self.vocabulary.begin_token();
        let sequences: Vec<Vec<i64>> = candidates
            .iter()
            .flatten()
            .map(|candidate| std::iter::once(begin).chain(candidate.tokens.iter().copied()).collect())
            .collect();
        let captions = CaptionBatch::new(&sequences, self.generation_config.beams, self.device);
        let (reward, _) = self.timed(|bench| bench.rewards(&bench.evaluator, &embeddings, &candidates));
        let (reference, _) = self.timed(|bench| {
            no_grad(|| bench.reference.token_log_probabilities(&hidden, &captions, DropoutMode::Evaluate).sums())
        });
        let (all_reduce, result) = self.timed(|bench| bench.collective.all_reduce(&bench.gradient().buffer));
        result?;
        let learn = step - vision - beam_search - reward - reference - all_reduce;
        Ok(PhaseSeconds { vision, beam_search, reward, reference, learn, all_reduce })
    }

    /// The rewards of the candidates, `[images, candidates]`.
    fn rewards(&self, evaluator: &Clip, embeddings: &Tensor, candidates: &[Vec<Hypothesis>]) -> Tensor {
        let embeddings = [embeddings.shallow_clone()];
        // Of the hidden states, rewards need only the device.
        let images = EncodedImages { hidden: &embeddings[0], embeddings: &embeddings, indices: &self.image_indices };
        self.context(&self.pac_s_reward(evaluator)).rewards(&images, candidates)
    }

    /// The share of images whose candidates have the same ranking by an evaluator with f32
    /// products.
    fn same_ranking(&self) -> f64 {
        let f32_backend = Backend { device: self.device, precision: Precision::F32 };
        let f32_evaluator = build_evaluator(&self.evaluator_vocabulary, f32_backend);
        let images = self.image_indices.len();
        let mut same = 0;
        let batches = MIN_RANKED_IMAGES.div_ceil(images);
        for _ in 0..batches {
            let pixels = normalize(&self.pixels.randint_like(256), 0..images, self.device, &Normalization::default());
            let candidates = no_grad(|| {
                self.policy.beam_search(
                    &self.vision_encoder.vision.hidden_states(&pixels),
                    &self.generation_config,
                    DropoutMode::Evaluate,
                )
            });
            let ranking = |evaluator: &Clip| {
                let embeddings = no_grad(|| evaluator.image_embeddings(&evaluator.vision.hidden_states(&pixels)));
                self.rewards(evaluator, &embeddings, &candidates).argsort_stable(true, 1, true)
            };
            let differs = ranking(&self.evaluator).not_equal_tensor(&ranking(&f32_evaluator)).any_dim(1, false);
            same += images - differs.sum(Kind::Int64).int64_value(&[]) as usize;
        }
        same as f64 / (batches * images) as f64
    }
}

fn build_evaluator(vocabulary: &Vocabulary, backend: Backend) -> Clip {
    Clip::new(clip::preset(Preset::Dico, vocabulary.pad_token() as usize), EVALUATOR_SEED, backend)
}

impl VisionEncoderPreset {
    /// A CLIP with this vision encoder. Its text encoder is minimal, because it is not used.
    fn config(self) -> ClipConfig {
        let vision = match self {
            Self::VitB32 => VisionBackbone::Transformer { patch_size: 32, width: 768, layers: 12, heads: 12 },
            Self::VitL14 => VisionBackbone::Transformer { patch_size: 14, width: 1024, layers: 24, heads: 16 },
            Self::Rn50 => VisionBackbone::ResNet { blocks: [3, 4, 6, 3], width: 64, heads: 32 },
        };
        let text = TextConfig { width: 64, layers: 1, heads: 1, context_length: 1, vocabulary_size: 1 };
        ClipConfig::new(224, vision, text, 64)
    }
}

/// The peak resident memory of this process, in bytes.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vocabularies_are_parsed() {
        assert_eq!(parse_vocabulary("full").unwrap(), model_folder::Vocabulary::Full);
        assert_eq!(Vocabulary::from_manifest(&parse_vocabulary("100").unwrap()).size(), 103);
        assert!(["", "99", "49407", "half"].iter().all(|text| parse_vocabulary(text).is_err()));
    }
}
