use serde::{Deserialize, Serialize};

use super::{Contrastive, Dico, Objective, Rule, Scst};

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Names the stage in logs, metrics and checkpoints.
    pub name: String,
    /// What is minimised.
    pub objective: Objective,
    /// Updates.
    pub steps: u64,
    /// Samples a step, over all workers.
    pub batch: u32,
    /// Samples a worker computes at once; gradients are accumulated over the rest. Absent: all of its share.
    #[serde(default)]
    pub micro_batch: Option<u32>,
    /// The update rule.
    pub optimizer: Optimizer,
    /// How the learning rate goes over the stage.
    #[serde(default)]
    pub schedule: Schedule,
    /// Settings of `objective: contrastive`.
    #[serde(default)]
    pub contrastive: Contrastive,
    /// Settings of `objective: dico`.
    #[serde(default)]
    pub dico: Dico,
    /// Settings of `objective: scst`.
    #[serde(default)]
    pub scst: Scst,
    /// Steps between evaluations; the stage's last step is always evaluated, unless the stage is ended early.
    #[serde(default)]
    pub evaluate_every: Option<u64>,
    /// Evaluate before the first step, too.
    #[serde(default)]
    pub evaluate_first: bool,
    /// The score by which the stage's best state is found. Each state that is evaluated is then saved, the best is kept, and
    /// the stage ends with it. Absent: it ends with its last.
    #[serde(default)]
    pub metric: Option<String>,
    /// The stage ends early after so many evaluations in a row without a better one.
    #[serde(default)]
    pub patience: Option<u32>,
    /// Bounds that statistics of steps and scores of evaluations must keep.
    #[serde(default)]
    pub guard: Vec<Rule>,
    /// Steps between checkpoints; the stage's last step is always saved.
    #[serde(default)]
    pub checkpoint_every: Option<u64>,
}

/// The update rule: Adam, or AdamW when `weight_decay` is not 0.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay rates of the first and second moment.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[serde(default = "default_epsilon")]
    pub epsilon: f64,
    /// Decoupled decay of matrices (vectors are never decayed).
    #[serde(default)]
    pub weight_decay: f64,
    /// Gradients are scaled down to this norm.
    #[serde(default)]
    pub clip_norm: Option<f64>,
}

/// How the learning rate goes over a stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub shape: Shape,
    /// Fraction of the steps over which the rate rises linearly from 0.
    pub warmup: f64,
}

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Stays at its peak.
    #[default]
    Constant,
    /// Falls to 0 along half a cosine.
    Cosine,
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_epsilon() -> f64 {
    1e-8
}
