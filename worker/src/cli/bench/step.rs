//! `worker bench step`: measures DiCO steps at the size of the paper's models.
//!
//! | file | content |
//! |---|---|
//! | `rank` | a rank, which executes the trainer's step |
//! | `models` | the models, with random weights |
//! | `data` | synthetic images, and their features |
//! | `ranking` | compares the rewards of 16-bit products with those of 32-bit products |

mod data;
mod models;
mod rank;
mod ranking;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Result, bail};
use config::{Precision, RunFile};
use metric_catalogue::names;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Device;
use tokenizer::Vocabulary;
use weights::model_folder;

use super::ranks;
use super::trace::trace;
use crate::captioner::GenerationConfig;
use crate::cli::device_options::DeviceOptions;
use crate::collective::Collective;
use crate::cuda;
use crate::nn::Backend;
use crate::phase_timer::PhaseTimer;
use models::VisionEncoderPreset;
use rank::Rank;
use ranking::same_ranking_share;

/// Number of steps that are not measured: the first ones allocate memory and select kernels.
const WARM_UP_STEPS: u64 = 2;
/// The run whose steps are measured. Its data and its weights are not opened: a [`Rank`] has
/// synthetic images and random weights.
const RUN: &str = "
name: bench
output: bench
workers: { min: 1, max: 1 }
data: { karpathy: { annotations: dataset.json, images: images } }
captioner: { weights: random, dropout: 0.1 }
evaluator: { weights: random, cut_candidates: closed }
stages:
  - name: dico
    objective: { dico: { reward: { pac_s: 1 } } }
    steps: 1
    batch: 1
    optimizer: { learning_rate: 1.0e-6 }
";
/// No token has this id.
const NO_TOKEN: i64 = -1;

/// Measure DiCO steps at the size of the paper's models, from images to the update.
///
/// Executes the step of the trainer: it loads a batch, generates candidates, computes rewards and
/// log-probabilities, and updates the captioner. Weights are random and images synthetic, so
/// captions rarely end before --max-length. Prints images per second and the duration of each
/// phase.
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
    /// Read the outputs of the frozen vision encoders from a feature store, which is written first.
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

/// The measurements of a rank.
#[derive(Serialize, Deserialize)]
struct Measurements {
    /// The duration of each step, in order.
    seconds: Vec<f64>,
    /// The duration of each phase of one more step, by name.
    phases: HashMap<String, f64>,
    /// The peak resident memory of the process, in bytes.
    peak_memory: Option<u64>,
    /// The share of images whose candidates have the same ranking with f32 products; none if
    /// products are f32.
    same_ranking: Option<f64>,
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
        crate::cli::print(format_args!(
            "{images_per_second:.2} images/s; a step takes {step:.4} s, the median of {}",
            self.steps
        ))?;
        let phase = |name: &&str| Some(format!("{} {:.4}", name.replace('_', "-"), phases.get(*name)?));
        let phases: Vec<String> = names::PHASES.iter().filter_map(phase).collect();
        crate::cli::print(format_args!("{}", phases.join(", ")))?;
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
        let run = self.run_file();
        let backend = Backend { device, precision: self.precision };
        let vocabulary = Vocabulary::from_manifest(&self.vocabulary);
        let mut generation_config = GenerationConfig::new(&run.decoding, &vocabulary);
        if self.min_length.is_some() {
            generation_config.eos_token_id = NO_TOKEN;
        }
        let models = models::build(self.vision, vocabulary, &run.primary_evaluator(), backend);
        let mut rank = Rank::new(run, models, generation_config, self.cached_features, collective)?;
        let mut timed_step = |timer: &PhaseTimer| {
            cuda::synchronize(device);
            let started_at = Instant::now();
            rank.train_step(timer)?;
            cuda::synchronize(device);
            anyhow::Ok(started_at.elapsed().as_secs_f64())
        };
        (0..WARM_UP_STEPS).try_for_each(|_| timed_step(&PhaseTimer::default()).map(drop))?;
        let seconds = (0..self.steps).map(|_| timed_step(&PhaseTimer::default())).collect::<Result<Vec<f64>>>()?;
        let peak_memory = peak_memory();
        let timer = PhaseTimer::awaiting(device);
        let mut phases = timer.seconds_by_phase(timed_step(&timer)?);
        // Nothing grants steps, so no step waits for a grant.
        phases.remove("wait");
        if let Some(path) = &self.trace {
            trace(device, path, || timed_step(&PhaseTimer::default()).map(drop))?;
        }
        let is_16_bit = self.precision != Precision::F32;
        let same_ranking = is_16_bit.then(|| same_ranking_share(rank.models(), rank.generation_config()));
        Ok(Measurements { seconds, phases, peak_memory, same_ranking })
    }

    /// The run whose steps are measured.
    fn run_file(&self) -> RunFile {
        let mut run = RunFile::parse(Path::new("bench"), RUN).expect("the run of the measurement is valid");
        run.compute_dtype = self.precision;
        (run.decoding.beams, run.decoding.max_length) = (self.beams.into(), self.max_length.into());
        let stage = &mut run.stages[0];
        stage.batch = u32::from(self.batch) * u32::from(self.world);
        // The last two are those of the phases and of the trace.
        stage.steps = WARM_UP_STEPS + u64::from(self.steps) + 2;
        run
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
