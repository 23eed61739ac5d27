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
    /// The control plane's few constants.
    #[serde(default)]
    pub control: Control,
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

/// The control plane's few constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// A worker that is not heard for this many seconds is lost.
    pub lost_after: f64,
    /// Steps granted ahead of the last committed one.
    pub window: u32,
    /// Newest checkpoints kept; besides them the last of each stage, the best of the present one, and what a guard may yet go back to.
    pub keep_checkpoints: u32,
}

impl Default for Control {
    fn default() -> Self {
        Self { lost_after: 10.0, window: 8, keep_checkpoints: 2 }
    }
}
