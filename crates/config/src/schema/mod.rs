//! What a run file says, one module for each part of it.

mod check;
mod consistency;
mod data;
mod earlier_objectives;
mod evaluators;
mod guard;
mod models;
mod objective;
mod rewards;
mod stage;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use check::Problem;
pub use data::{Coco, CocoSplit, CropOffset, Data, Karpathy, Positives, WebDataset};
pub(crate) use earlier_objectives::{EARLIER_KEYS, warning as earlier_objective_warning};
pub use evaluators::NamedEvaluator;
pub use guard::{GuardAction, Rule};
pub use models::{
    Captioner, CutCandidates, Decoding, Evaluator, EvaluatorScore, Preset, ProjectionInit, TextReading, Vocabulary,
};
pub use objective::{
    Baseline, CandidateKind, Contrastive, CrossEntropy, Dico, Objective, Preference, RejectedWeights, SampleKind, Scst,
    Trainable, TrainedModel,
};
pub use rewards::{Reward, Rewards};
pub use stage::{Optimizer, Schedule, ScheduleShape, Stage};

/// One run: its data, models and stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// Name of the run in logs, metrics and status. Letters, digits, `-`, `_` and `.`; at most 64.
    pub name: String,
    /// Seed of everything random in the run: initial parameters, order of samples, dropout, sampled
    /// captions.
    #[serde(default)]
    pub seed: u64,
    /// Folder for captions of evaluations, for checkpoints (unless `checkpoints.url` says
    /// otherwise) and for the coordinator's journal (unless `serve --state` says otherwise).
    pub output: PathBuf,
    /// Number of workers.
    pub workers: Workers,
    /// Images and captions of the run.
    pub data: Data,
    /// Vocabulary of models that are trained from scratch. Models with `weights` bring their own.
    #[serde(default)]
    pub vocabulary: Vocabulary,
    /// The model that writes captions.
    pub captioner: Captioner,
    /// The model that scores captions against images. It may be left out where `evaluators` has
    /// some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<Evaluator>,
    /// Evaluators by name, each with the keys of `evaluator`: further ones beside `evaluator`, or
    /// all of them. Rewards and metrics refer to them by name: an evaluator `NAME` gives
    /// `NAME`, `ref_NAME`, `NAME_retrieval_r1` and so on. `contrastive` stages train
    /// `evaluator`, or else the one with `preset`; all others are frozen. 8 at most.
    #[serde(default)]
    pub evaluators: BTreeMap<String, Evaluator>,
    /// Beam search, in rewarded stages and in evaluations.
    #[serde(default)]
    pub decoding: Decoding,
    /// Files of METEOR and SPICE for evaluations.
    #[serde(default)]
    pub scoring: Scoring,
    /// Stages of training, in order. At least one.
    #[serde(deserialize_with = "earlier_objectives::deserialize_stages")]
    pub stages: Vec<Stage>,
    /// Number format of matrix products.
    #[serde(default, alias = "precision")]
    pub compute_dtype: Precision,
    /// Number format of gradients in the all-reduce between workers.
    #[serde(default, alias = "wire")]
    pub gradient_dtype: Precision,
    /// Checkpoints: where they are saved, and how many are kept.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// How the coordinator directs workers.
    #[serde(default)]
    pub control: Control,
}

/// A number format. Parameters, their updates, checkpoints, normalisations and losses always have
/// 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits (bfloat16), with the exponent range of 32 and less than three decimal digits.
    Bf16,
}

/// Number of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workers {
    /// The run waits while it has fewer workers. At least 1.
    pub min: u32,
    /// The coordinator refuses further workers. At most 100,000, and at most the smallest `batch`.
    pub max: u32,
}

/// Maximal number of workers of a run: worker ids are below this.
pub const MAX_WORKERS: u32 = 100_000;

/// Files of METEOR and SPICE that their authors publish. Without its tables METEOR matches words
/// and stems only. Without its jar SPICE is not measured.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scoring {
    /// `meteor-1.5.jar`, which contains function words and synonyms.
    #[serde(default)]
    pub meteor_jar: Option<PathBuf>,
    /// METEOR's `paraphrase-en.gz`.
    #[serde(default)]
    pub meteor_paraphrases: Option<PathBuf>,
    /// `spice-1.0.jar` in its folder, with the Stanford models in its `lib`.
    #[serde(default)]
    pub spice_jar: Option<PathBuf>,
}

/// Checkpoints: where they are saved, and how many are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoints {
    /// `file:///folder` or `s3://bucket/prefix` (with settings from the usual `AWS_*` variables).
    /// If absent, the folder `checkpoints` in `output`. The coordinator and all workers must reach
    /// the same location.
    #[serde(alias = "to")]
    pub url: Option<String>,
    /// Newest checkpoints that are kept. The last of each stage, the best of the current stage and
    /// those that a guard may go back to are kept as well. At least 1.
    pub keep: u32,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self { url: None, keep: 2 }
    }
}

/// How the coordinator directs workers: timeouts, granted steps, and shares of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// The coordinator counts a worker as failed when the worker has sent no message for this long.
    #[serde(alias = "lost_after")]
    pub heartbeat_timeout: f64,
    /// The coordinator evicts a worker that makes no progress for this long while others wait for
    /// it, even if it sends heartbeats.
    #[serde(alias = "stall_after")]
    pub stall_timeout: f64,
    /// Steps that workers may take beyond the last one that all have reported. At least 1.
    pub window: u32,
    /// How a batch is distributed over the workers.
    pub sharding: Sharding,
}

/// How a batch is distributed over the workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Sharding {
    /// Every worker gets the same number of samples, up to one.
    #[default]
    Equal,
    /// A worker's share is proportional to its speed. Updates are the same up to rounding, but runs
    /// are not reproducible to the bit.
    Proportional,
}

impl Default for Control {
    fn default() -> Self {
        Self { heartbeat_timeout: 10.0, stall_timeout: 300.0, window: 8, sharding: Sharding::Equal }
    }
}
