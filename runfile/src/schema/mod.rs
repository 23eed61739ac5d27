//! What a run file says, one module for each part of it.

mod check;
mod data;
mod guard;
mod models;
mod objective;
mod stage;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use data::{Coco, CocoSplit, Data, Karpathy, Positives, WebDataset};
pub use guard::{GuardAction, Rule};
pub use models::{Captioner, Decoding, Evaluator, EvaluatorScore, Preset, Vocabulary};
pub use objective::{Baseline, Candidates, Contrastive, Dico, Objective, Reward, Rewards, Scst, Weights};
pub use stage::{Optimizer, Schedule, Shape, Stage};

/// One run: its data, models and stages. Field names are the keys of the YAML file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Names the run in logs, metrics and status.
    pub name: String,
    /// Everything random in the run follows from it.
    #[serde(default)]
    pub seed: u64,
    /// Folder for checkpoints (and the coordinator's journal, unless `--state` says otherwise).
    pub output: PathBuf,
    /// How many workers the run needs and takes.
    pub workers: Workers,
    /// Images and captions.
    pub data: Data,
    /// Which tokens models trained from scratch know.
    #[serde(default)]
    pub vocabulary: Vocabulary,
    /// The model that is trained to write captions.
    pub captioner: Captioner,
    /// The model that judges captions.
    pub evaluator: Evaluator,
    /// How captions are searched, in fine-tuning and in evaluations.
    #[serde(default)]
    pub decoding: Decoding,
    /// What evaluations need for metrics that rest on others' files.
    #[serde(default)]
    pub scoring: Scoring,
    /// Stages of training, in order.
    pub stages: Vec<Stage>,
    /// In how many bits matrices are multiplied.
    #[serde(default)]
    pub precision: Precision,
    /// In how many bits gradients travel between workers.
    #[serde(default)]
    pub wire: Precision,
    /// Where states are saved, and how many are kept.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// The control plane's few constants.
    #[serde(default)]
    pub control: Control,
}

/// In how many bits something is done. Parameters, their updates, checkpoints, normalisations and losses are always in 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, with the exponents of 32: less than three decimal digits, in half the memory.
    Bf16,
}

/// How many workers the run needs and takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// Below this many the run waits.
    pub min: u32,
    /// More than this many are turned away.
    pub max: u32,
}

/// Most workers that a run can have: ranks are below this.
pub const MAX_WORKERS: u32 = 100_000;

/// What evaluations need for metrics that rest on others' files. METEOR without its tables matches words and stems only;
/// SPICE without its jar is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scoring {
    /// `meteor-1.5.jar`, for its function words and synonyms.
    #[serde(default)]
    pub meteor_jar: Option<PathBuf>,
    /// METEOR's `paraphrase-en.gz`.
    #[serde(default)]
    pub meteor_paraphrases: Option<PathBuf>,
    /// `spice-1.0.jar` in its folder, with the Stanford models in its `lib`.
    #[serde(default)]
    pub spice_jar: Option<PathBuf>,
}

/// Where states are saved, and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// `file:///folder` or `s3://bucket/prefix` (settings from the usual `AWS_*` variables). Absent: `checkpoints` in the run's
    /// output folder. All workers and the coordinator must see the same place.
    pub to: Option<String>,
    /// Newest checkpoints kept; besides them the last of each stage, the best of the present one, and what a guard may yet go back to.
    pub keep: u32,
}

impl RunFile {
    /// The folder for the captions of evaluations.
    #[must_use]
    pub fn captions_folder(&self) -> PathBuf {
        self.output.join("captions")
    }

    /// The folder or URL that states are saved to.
    #[must_use]
    pub fn checkpoint_place(&self) -> String {
        let beside = || self.output.join("checkpoints").to_string_lossy().into_owned();
        self.checkpoints.to.clone().unwrap_or_else(beside)
    }
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { to: None, keep: 2 }
    }
}

/// The control plane's few constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// A worker that is not heard for this many seconds is lost.
    pub lost_after: f64,
    /// A worker that does not move for this many seconds while others wait for it is sent away, heartbeats or not.
    pub stall_after: f64,
    /// Steps granted ahead of the last one that all workers have reported.
    pub window: u32,
    /// How a batch is shared out.
    pub sharding: Sharding,
}

/// How a batch is shared out among the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Every rank gets the same, up to one sample.
    #[default]
    Equal,
    /// A rank gets as much as it is fast. The update is the same up to rounding, but no two runs are alike to the bit.
    Proportional,
}

impl Default for Control {
    fn default() -> Self {
        Self { lost_after: 10.0, stall_after: 300.0, window: 8, sharding: Sharding::Equal }
    }
}
