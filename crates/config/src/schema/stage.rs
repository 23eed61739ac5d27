use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Contrastive, Dico, Objective, Rule, Scst, objective};

/// One stage of training: an objective, and how long and in which batches it is trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Name of the stage in logs, metrics and checkpoints. Letters, digits, `-`, `_` and `.`;
    /// different for each stage.
    pub name: String,
    /// The objective, and its settings: `dico`, or `{ dico: { beta: 0.1 } }`.
    #[serde(deserialize_with = "objective::deserialize")]
    pub objective: Objective,
    /// Number of updates. At least 1.
    pub steps: u64,
    /// Samples per step over all workers: captions in `cross_entropy` stages, images in others. At
    /// least `workers.max`.
    pub batch: u32,
    /// Samples that a worker computes at once. It accumulates gradients over its share of the
    /// batch. If absent, it computes its whole share at once. Not for `contrastive` stages.
    #[serde(default)]
    pub micro_batch: Option<u32>,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// Schedule of the learning rate.
    #[serde(default)]
    pub schedule: Schedule,
    /// Steps between evaluations. The stage's last step is always evaluated, unless the stage ends
    /// early. At least 1.
    #[serde(default)]
    pub evaluate_every: Option<u64>,
    /// Evaluate before the first step as well.
    #[serde(default)]
    pub evaluate_first: bool,
    /// Score of evaluations that selects the stage's best state. The stage then saves each state
    /// that it evaluates, and ends with the best. If absent, it ends with the last state. The names
    /// are listed under "Metrics".
    #[serde(default)]
    pub metric: Option<String>,
    /// Early stopping: the stage ends after this many consecutive evaluations without a better
    /// score. At least 1. Needs `metric` and `evaluate_every`.
    #[serde(default)]
    pub patience: Option<u32>,
    /// Rules that statistics of steps and scores of evaluations have to keep.
    #[serde(default)]
    pub guard: Vec<Rule>,
    /// Steps between checkpoints. The stage's last step is always saved. At least 1.
    #[serde(default)]
    pub checkpoint_every: Option<u64>,
    /// Settings of the contrastive objective where earlier versions had them. They are moved to
    /// `objective` when a run file is read; what remains is refused.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub contrastive: Option<Contrastive>,
    /// As `contrastive`, for SCST.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub scst: Option<Scst>,
    /// As `contrastive`, for DiCO.
    #[serde(default, skip_serializing)]
    #[schemars(skip)]
    pub dico: Option<Dico>,
}

/// The optimizer: Adam, or AdamW if `weight_decay` is above 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Peak learning rate, above 0.
    pub learning_rate: f64,
    /// Decay rates of the first and second moment, each from 0 to below 1.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Term that is added to the root of the second moment, above 0.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Decoupled weight decay of matrices, 0 or above. Vectors are not decayed.
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients with a larger norm are scaled down to this one, above 0. If absent, gradients are
    /// not clipped.
    #[serde(default)]
    pub clip_norm: Option<f64>,
}

/// Schedule of the learning rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub shape: ScheduleShape,
    /// Fraction of the stage's steps in which the rate rises linearly. 0 to 1. Over N such steps,
    /// step s (from 1) has s/N of the peak.
    pub warmup: f64,
    /// Start the warm-up at a rate of 0, as transformers and the DiCO release do: step s has
    /// (s - 1)/N of the peak, so the first step changes nothing. N is rounded up.
    pub warmup_from_zero: bool,
}

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// The rate stays at its peak.
    #[default]
    Constant,
    /// The rate falls to 0 along half a cosine.
    Cosine,
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_epsilon() -> f64 {
    1e-8
}
