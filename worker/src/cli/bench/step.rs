use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use clap::ValueEnum;
use config::{CutCandidates, Dico, EvaluatorScore, Optimizer, Precision, Preset, ProjectionInit, TextReading};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};
use tokenizer::Vocabulary;
use weights::clip::{Architecture, Text, Vision};
use weights::{Normalization, folder};

use super::trace::trace;
use super::{synchronise, world};
use crate::captioner::beam::Hypothesis;
use crate::captioner::{self, Captioner, Captions, Search};
use crate::cli::device::Compute;
use crate::clip::{self, Clip};
use crate::collective::Collective;
use crate::data::normalise;
use crate::nn::{Backend, Gradient, Mode};
use crate::objective::candidates::{Context, Images};
use crate::objective::dico;
use crate::objective::reward::{EvaluatorReward, RewardModel};
use crate::optimizer::{Adam, AveragedGradient};
use crate::phase_timer::PhaseTimer;

/// Steps that are not counted: the first ones find memory and kernels.
const WARM_UP: usize = 2;
const DROPOUT: f64 = 0.1;
const LEARNING_RATE: f64 = 1e-6;
/// Images, at least, whose candidates are ranked in 16 and in 32 bits.
const RANKED: usize = 64;

#[derive(clap::Args)]
#[command(after_help = "Example: worker bench step --batch 8 --steps 10 --min-length 30 --device cuda:0 --json")]
/// Time full DiCO steps of the paper-size model: candidates, rewards, reference, loss, gradients and update.
///
/// Weights, pixels and therefore captions are random; such captions hardly ever end by themselves.
pub struct Step {
    /// Images a step.
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Candidates an image.
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u16).range(2..=64))]
    beams: u16,
    /// Longest caption, in tokens, begin and end included.
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=77))]
    max_length: u16,
    /// MAX_LENGTH, to keep captions from ending before: the same work whatever the weights.
    #[arg(long, value_name = "N")]
    min_length: Option<u16>,
    /// What the captioner sees through.
    #[arg(long, default_value = "vit-b-32", value_name = "TOWER")]
    vision: Tower,
    /// Take what the frozen towers see as given, as from a feature store.
    #[arg(long)]
    cached_features: bool,
    /// The captioner's vocabulary: full, or so many of CLIP's tokens.
    #[arg(long, default_value = "full", value_parser = vocabulary, value_name = "full|N")]
    vocabulary: folder::Vocabulary,
    /// In how many bits matrices are multiplied.
    #[arg(long, default_value = "f32", value_parser = precision, value_name = "f32|bf16")]
    precision: Precision,
    /// Steps that are timed.
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    steps: u16,
    /// Ranks, each a process with a batch of its own, whose gradients are summed.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    world: u16,
    /// Write what one more step does on the processor and on the GPU to a file that Perfetto and
    /// chrome://tracing open.
    #[arg(long, value_name = "FILE", conflicts_with = "world")]
    trace: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tower {
    #[value(name = "vit-b-32")]
    VitB32,
    #[value(name = "vit-l-14")]
    VitL14,
    #[value(name = "rn50")]
    Rn50,
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "f32" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        _ => Err("expected f32 or bf16".to_owned()),
    }
}

fn vocabulary(text: &str) -> Result<folder::Vocabulary, String> {
    if text == "full" {
        return Ok(folder::Vocabulary::Full);
    }
    match text.parse() {
        Ok(tokens @ 100..=49_406_u16) => Ok(folder::Vocabulary::Tokens((0..tokens).collect())),
        _ => Err("expected full or a number in 100..=49406".to_owned()),
    }
}

/// Seconds of the parts of a step, each computed on its own; `learn` is what is left of the whole.
#[derive(Serialize, Deserialize)]
struct Phases {
    vision: f64,
    beam_search: f64,
    reward: f64,
    reference: f64,
    learn: f64,
    all_reduce: f64,
}

/// What a rank has measured.
#[derive(Serialize, Deserialize)]
struct Measured {
    /// Of each step, in order.
    seconds: Vec<f64>,
    phases: Phases,
    /// The most memory that the process has had, in bytes.
    peak_memory: Option<u64>,
    same_ranking: Option<f64>,
}

/// The models of a run at the size of the paper's, and a batch.
struct Bench<'a> {
    device: Device,
    collective: &'a dyn Collective,
    vision_encoder: Clip,
    evaluator: Clip,
    policy: Captioner,
    reference: Captioner,
    optimizer: Adam,
    /// Bytes `[batch, size, size, 3]` in this machine's memory.
    pixels: Tensor,
    /// What the towers see of them, where that is given.
    seen: Option<(Tensor, Tensor)>,
    numbers: Vec<usize>,
    vocabulary: Vocabulary,
    judge_vocabulary: Vocabulary,
    search: Search,
    settings: Dico,
    /// Not looked at: on a GPU they would tell when something was asked for, not when it was done.
    timer: PhaseTimer,
}

impl Step {
    pub fn run(self) -> Result<(), String> {
        let device = self.compute.prepare()?;
        if self.min_length.is_some_and(|length| length != self.max_length) {
            return Err(format!("--min-length can only be --max-length, {}", self.max_length));
        }
        let ranks = world::run(self.world, device, |device, collective| self.measure(device, collective))?;
        // Ranks wait for each other in every step, so the times of one are those of all.
        let Measured { mut seconds, phases, peak_memory, same_ranking } =
            ranks.into_iter().next().expect("there is a rank 0");
        seconds.sort_by(f64::total_cmp);
        let step = seconds[seconds.len() / 2];
        let images = f64::from(self.batch) * f64::from(self.world) / step;
        if self.json {
            crate::cli::print(format_args!(
                "{}",
                json!({
                    "images_per_s": images,
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
        let Phases { vision, beam_search, reward, reference, learn, all_reduce } = phases;
        crate::cli::print(format_args!(
            "{images:.2} images a second; a step takes {step:.4} s, the median of {}",
            self.steps
        ))?;
        crate::cli::print(format_args!(
            "vision {vision:.4}, beam search {beam_search:.4}, reward {reward:.4}, reference {reference:.4}, learn {learn:.4}, \
             all-reduce {all_reduce:.4}"
        ))?;
        if let Some(share) = same_ranking {
            crate::cli::print(format_args!(
                "candidates are ranked as in 32 bits for {:.1} % of images",
                100.0 * share
            ))?;
        }
        Ok(())
    }

    /// What one rank does.
    fn measure(&self, device: Device, collective: &dyn Collective) -> Result<Measured, String> {
        let mut bench = self.prepare(device, collective);
        (1..=WARM_UP as u64).try_for_each(|number| bench.step(number))?;
        let mut seconds = Vec::new();
        for number in 1..=u64::from(self.steps) {
            let (elapsed, done) = bench.timed(|bench| bench.step(number + WARM_UP as u64));
            done?;
            seconds.push(elapsed);
        }
        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let peak_memory = peak_memory();
        let phases = bench.phases(sorted[sorted.len() / 2])?;
        if let Some(path) = &self.trace {
            trace(device, path, || bench.step(1 + seconds.len() as u64 + WARM_UP as u64))?;
        }
        let same_ranking = (self.precision != Precision::F32).then(|| bench.same_ranking());
        Ok(Measured { seconds, phases, peak_memory, same_ranking })
    }

    fn prepare<'a>(&self, device: Device, collective: &'a dyn Collective) -> Bench<'a> {
        let (vocabulary, judge_vocabulary) = (Vocabulary::stored(&self.vocabulary), Vocabulary::full());
        let backend = Backend { device, precision: self.precision };
        let vision_encoder = Clip::new(self.vision.architecture(), 1, backend);
        let evaluator = evaluator(&judge_vocabulary, backend);
        let (width, tokens) =
            (vision_encoder.architecture().vision_width(), vision_encoder.architecture().vision_tokens());
        let architecture = captioner::preset(Preset::Dico, width, tokens, vocabulary.size() as usize);
        let mut policy = Captioner::new(architecture, ProjectionInit::default(), 3, backend);
        let reference = policy.copy();
        policy.parameters_mut().start_training(|_| true);
        let settings = Optimizer {
            learning_rate: LEARNING_RATE,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip_norm: None,
        };
        let optimizer = Adam::new(policy.parameters(), &settings);
        let side = vision_encoder.architecture().image_size as i64;
        tch::manual_seed(4 + collective.rank() as i64);
        let pixels = Tensor::randint(256, [i64::from(self.batch), side, side, 3], (Kind::Uint8, Device::Cpu));
        let search = Search {
            beams: self.beams.into(),
            max_length: self.max_length.into(),
            length_penalty: 1.0,
            cut_length_includes_bos: false,
            begin: vocabulary.begin(),
            // No token has this number.
            end: if self.min_length.is_some() { -1 } else { vocabulary.end() },
        };
        let numbers = (0..self.batch.into()).collect();
        let settings = Dico { reward: BTreeMap::from([(EvaluatorScore::PacS.into(), 1.0)]), ..Dico::default() };
        let mut bench = Bench {
            device,
            collective,
            vision_encoder,
            evaluator,
            policy,
            reference,
            optimizer,
            pixels,
            seen: None,
            numbers,
            vocabulary,
            judge_vocabulary,
            search,
            settings,
            timer: PhaseTimer::default(),
        };
        bench.seen = self.cached_features.then(|| bench.look());
        bench
    }
}

impl Bench<'_> {
    /// What the frozen towers see of the batch: hidden states for the captioner, embeddings of the evaluator.
    fn look(&self) -> (Tensor, Tensor) {
        if let Some((hidden, embeddings)) = &self.seen {
            return (hidden.shallow_clone(), embeddings.shallow_clone());
        }
        let images = normalise(&self.pixels, 0..self.numbers.len(), self.device, &Normalization::default());
        no_grad(|| {
            (self.vision_encoder.vision.hidden(&images), self.evaluator.embed(&self.evaluator.vision.hidden(&images)))
        })
    }

    /// PAC-S by this evaluator.
    fn pac_s<'b>(&'b self, evaluator: &'b Clip) -> [EvaluatorReward<'b>; 1] {
        [EvaluatorReward {
            name: EvaluatorScore::PacS.name(),
            clip: evaluator,
            vocabulary: &self.judge_vocabulary,
            score: EvaluatorScore::PacS,
            prefix: "",
            text: TextReading::AsIs,
            cut_candidates: CutCandidates::Closed,
        }]
    }

    fn context<'b>(&'b self, evaluators: &'b [EvaluatorReward<'b>]) -> Context<'b> {
        Context {
            reference: &self.reference,
            reward_model: RewardModel { evaluators, cider: None, weights: &self.settings.reward },
            vocabulary: &self.vocabulary,
            search: self.search,
            candidate_dropout: None,
            timer: &self.timer,
        }
    }

    fn step(&mut self, number: u64) -> Result<(), String> {
        let (hidden, embeddings) = self.look();
        let images = Images { hidden: &hidden, embeddings: &[embeddings], numbers: &self.numbers };
        let Gradient { whole, values: mut gradient, .. } = self.gradient();
        _ = gradient.zero_();
        let mode = Mode::Train { dropout: DROPOUT };
        let evaluators = self.pac_s(&self.evaluator);
        let outcome = dico::outcome(&self.policy, &images, &self.context(&evaluators), &self.settings, mode);
        outcome.loss.backward();
        self.collective.all_reduce(&whole).map_err(|broken| broken.to_string())?;
        let average = AveragedGradient::new(&gradient, outcome.weight * self.collective.world_size() as f64);
        self.optimizer.update(self.policy.parameters(), &average, number, LEARNING_RATE);
        Ok(())
    }

    fn gradient(&self) -> Gradient {
        self.policy.parameters().gradient().expect("the policy is in training")
    }

    /// Seconds until all that is computed is computed, and what that is.
    fn timed<T>(&mut self, compute: impl FnOnce(&mut Self) -> T) -> (f64, T) {
        synchronise(self.device);
        let started = Instant::now();
        let computed = compute(self);
        synchronise(self.device);
        (started.elapsed().as_secs_f64(), computed)
    }

    fn phases(&mut self, step: f64) -> Result<Phases, String> {
        let (vision, (hidden, embeddings)) = self.timed(|bench| bench.look());
        let (beam_search, found) = self.timed(|bench| bench.policy.search(&hidden, &bench.search, Mode::Evaluate));
        let begin = self.vocabulary.begin();
        let sequences: Vec<Vec<i64>> = found
            .iter()
            .flatten()
            .map(|found| std::iter::once(begin).chain(found.tokens.iter().copied()).collect())
            .collect();
        let captions = Captions::new(&sequences, self.search.beams, self.device);
        let (reward, _) = self.timed(|bench| bench.rewards(&bench.evaluator, &embeddings, &found));
        let (reference, _) = self.timed(|bench| {
            no_grad(|| bench.reference.token_log_probabilities(&hidden, &captions, Mode::Evaluate).sums())
        });
        let (all_reduce, done) = self.timed(|bench| bench.collective.all_reduce(&bench.gradient().whole));
        done.map_err(|broken| broken.to_string())?;
        let learn = step - vision - beam_search - reward - reference - all_reduce;
        Ok(Phases { vision, beam_search, reward, reference, learn, all_reduce })
    }

    /// `[images, candidates]`.
    fn rewards(&self, evaluator: &Clip, embeddings: &Tensor, found: &[Vec<Hypothesis>]) -> Tensor {
        let embeddings = [embeddings.shallow_clone()];
        let images = Images { hidden: &embeddings[0], embeddings: &embeddings, numbers: &self.numbers };
        self.context(&self.pac_s(evaluator)).rewards(&images, found)
    }

    /// The share of images whose candidates an evaluator in 32 bits ranks alike.
    fn same_ranking(&self) -> f64 {
        let exact = evaluator(&self.judge_vocabulary, self.device.into());
        let images = self.numbers.len();
        let mut same = 0;
        let batches = RANKED.div_ceil(images);
        for _ in 0..batches {
            let pixels = normalise(&self.pixels.randint_like(256), 0..images, self.device, &Normalization::default());
            let found = no_grad(|| {
                self.policy.search(&self.vision_encoder.vision.hidden(&pixels), &self.search, Mode::Evaluate)
            });
            let order = |evaluator: &Clip| {
                let embeddings = no_grad(|| evaluator.embed(&evaluator.vision.hidden(&pixels)));
                self.rewards(evaluator, &embeddings, &found).argsort_stable(true, 1, true)
            };
            let unlike = order(&self.evaluator).not_equal_tensor(&order(&exact)).any_dim(1, false);
            same += images - unlike.sum(Kind::Int64).int64_value(&[]) as usize;
        }
        same as f64 / (batches * images) as f64
    }
}

fn evaluator(vocabulary: &Vocabulary, backend: Backend) -> Clip {
    Clip::new(clip::preset(Preset::Dico, vocabulary.pad() as usize), 2, backend)
}

impl Tower {
    /// A CLIP with the tower, and next to no text tower, which is not used.
    fn architecture(self) -> Architecture {
        let vision = match self {
            Self::VitB32 => Vision::Transformer { patch_size: 32, width: 768, layers: 12, heads: 12 },
            Self::VitL14 => Vision::Transformer { patch_size: 14, width: 1024, layers: 24, heads: 16 },
            Self::Rn50 => Vision::ResNet { blocks: [3, 4, 6, 3], width: 64, heads: 32 },
        };
        let text = Text { width: 64, layers: 1, heads: 1, context_length: 1, vocabulary_size: 1 };
        Architecture::new(224, vision, text, 64)
    }
}

/// The most memory that this process has had, in bytes.
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
        assert_eq!(vocabulary("full"), Ok(folder::Vocabulary::Full));
        assert_eq!(vocabulary("100").map(|vocabulary| Vocabulary::stored(&vocabulary).size()), Ok(103));
        assert!(["", "99", "49407", "half"].iter().all(|text| vocabulary(text).is_err()));
    }
}
