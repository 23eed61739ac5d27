use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// How captions are searched, in DiCO and in evaluations.
    #[serde(default)]
    pub decoding: Decoding,
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

/// Images and captions: exactly one of `karpathy`, `coco` and `webdataset`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// One annotation file for all splits.
    #[serde(default)]
    pub karpathy: Option<Karpathy>,
    /// One annotation file a split.
    #[serde(default)]
    pub coco: Option<Coco>,
    /// Tars of images and captions.
    #[serde(default)]
    pub webdataset: Option<WebDataset>,
    /// Scene graphs of the built-in world; with them evaluations also report `grammatical`, `truthful` and `details`.
    #[serde(default)]
    pub scenes: Option<PathBuf>,
    /// Folder of feature stores, one a split, that `worker encode` wrote: images are then neither read nor encoded.
    #[serde(default)]
    pub features: Option<PathBuf>,
    /// Leave out (and count) images that are missing or cannot be decoded, instead of refusing to start.
    #[serde(default)]
    pub skip_corrupt: bool,
}

/// Karpathy's splits of COCO, Flickr8k and Flickr30k.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Karpathy {
    /// Karpathy's `dataset_*.json`.
    pub annotations: PathBuf,
    /// Folder below which the annotations' `filepath`/`filename` lie.
    pub images: PathBuf,
}

/// COCO's own caption annotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Coco {
    /// Trained on.
    pub train: CocoSplit,
    /// Evaluated on.
    pub validation: CocoSplit,
    /// Never used in training.
    #[serde(default)]
    pub test: Option<CocoSplit>,
}

/// A split of COCO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CocoSplit {
    /// `captions_*.json`.
    pub annotations: PathBuf,
    /// Folder of its images.
    pub images: PathBuf,
}

/// Tars with a `key.jpg` and a `key.txt` (one caption) or `key.json` (all captions) for each image. Each split is a path or an
/// `s3://` URL with brace patterns, such as `s3://data/coco-{000..113}.tar`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebDataset {
    /// Trained on.
    pub train: String,
    /// Evaluated on.
    pub validation: String,
    /// Never used in training.
    #[serde(default)]
    pub test: Option<String>,
}

/// Which tokens models trained from scratch know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// All of CLIP's 49,408 BPE tokens and a pad, as published.
    #[default]
    Full,
    /// Only the tokens that the training captions use: the vocabulary projection is most of a step's cost.
    Corpus,
}

/// Sizes of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Trains in minutes on two CPU cores.
    Tiny,
    /// The paper's.
    Dico,
}

/// The model that is trained to write captions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Captioner {
    /// Its size, to start from scratch.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// A folder that `worker import` or a run wrote, to start from: its captioner, vision tower and vocabulary.
    #[serde(default)]
    pub weights: Option<PathBuf>,
    /// CLIP weights whose frozen vision tower it sees through. Absent: the evaluator's.
    #[serde(default)]
    pub vision: Option<PathBuf>,
    /// Probability of dropping an activation while training.
    #[serde(default = "default_dropout")]
    pub dropout: f64,
}

/// The model that judges captions: either a size, to be trained by a contrastive stage, or weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluator {
    /// Its size, to start from scratch.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// CLIP weights, such as PAC-S.
    #[serde(default)]
    pub weights: Option<PathBuf>,
}

/// Beam search, with the semantics of Hugging Face `generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Decoding {
    /// Beams kept, and candidates proposed per image.
    pub beams: u32,
    /// Longest caption, in tokens, begin and end included.
    pub max_length: u32,
    /// Scores are divided by length to this power.
    pub length_penalty: f64,
    /// Count the begin token in the length of captions that were cut at the limit, as the DiCO release does.
    pub begin_counts_when_cut: bool,
}

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
    /// DiCO's constants; only for `objective: dico`.
    #[serde(default)]
    pub dico: Dico,
    /// Steps between evaluations; the stage's last step is always evaluated.
    #[serde(default)]
    pub evaluate_every: Option<u64>,
    /// Steps between checkpoints; the stage's last step is always saved.
    #[serde(default)]
    pub checkpoint_every: Option<u64>,
}

/// What a stage minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Symmetric InfoNCE of images and captions; trains the evaluator.
    Contrastive,
    /// Teacher forcing; trains the captioner.
    CrossEntropy,
    /// Direct CLIP-based optimisation; fine-tunes the captioner.
    Dico,
}

impl Objective {
    /// The name used in run files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Contrastive => "contrastive",
            Self::CrossEntropy => "cross_entropy",
            Self::Dico => "dico",
        }
    }
}

/// DiCO's constants (arXiv 2408.14547, section 3).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Dico {
    /// Scales the implicit reward: how far the policy may leave the reference.
    pub beta: f64,
    /// Inverse temperature of the weights over the rejected candidates.
    pub tau: f64,
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

/// The control plane's few constants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// A worker that is not heard for this many seconds is lost.
    pub lost_after: f64,
    /// Steps granted ahead of the last committed one.
    pub window: u32,
    /// Checkpoints kept (the last of each stage is kept besides).
    pub keep_checkpoints: u32,
}

fn default_dropout() -> f64 {
    0.1
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_epsilon() -> f64 {
    1e-8
}

impl Default for Decoding {
    fn default() -> Self {
        Self { beams: 5, max_length: 30, length_penalty: 1.0, begin_counts_when_cut: false }
    }
}

impl Default for Dico {
    fn default() -> Self {
        Self { beta: 0.2, tau: 300.0 }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self { lost_after: 10.0, window: 8, keep_checkpoints: 2 }
    }
}

impl Data {
    fn sources(&self) -> usize {
        let Self { karpathy, coco, webdataset, .. } = self;
        [karpathy.is_some(), coco.is_some(), webdataset.is_some()].into_iter().filter(|&given| given).count()
    }
}

type Problem = (String, String);

impl RunFile {
    /// Checks what types alone cannot say. The error is the key's path and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        need(!self.name.is_empty() && file_name(&self.name), "name", "must be letters, digits, `-`, `_` or `.`")?;
        need(self.workers.min >= 1, "workers.min", "must be at least 1")?;
        need(self.workers.max >= self.workers.min, "workers.max", "must not be below workers.min")?;
        need(self.data.sources() == 1, "data", "needs exactly one of `karpathy`, `coco` and `webdataset`")?;
        let Captioner { preset, weights, vision, .. } = &self.captioner;
        need(preset.is_some() != weights.is_some(), "captioner", "needs either `preset` or `weights`")?;
        need(
            weights.is_none() || vision.is_none(),
            "captioner.vision",
            "comes with captioner.weights: take one of the two out",
        )?;
        let Evaluator { preset, weights } = &self.evaluator;
        need(preset.is_some() != weights.is_some(), "evaluator", "needs either `preset` or `weights`")?;
        let trains_evaluator = self.stages.iter().any(|stage| stage.objective == Objective::Contrastive);
        need(
            self.data.features.is_none() || (self.evaluator.weights.is_some() && !trains_evaluator),
            "data.features",
            "can only be of frozen towers: give evaluator.weights and no contrastive stage",
        )?;
        need((0.0..1.0).contains(&self.captioner.dropout), "captioner.dropout", "must be in 0..1")?;
        need((1..=64).contains(&self.decoding.beams), "decoding.beams", "must be in 1..=64")?;
        need((3..=77).contains(&self.decoding.max_length), "decoding.max_length", "must be in 3..=77")?;
        need(self.decoding.length_penalty.is_finite(), "decoding.length_penalty", "must be finite")?;
        need(positive(self.control.lost_after), "control.lost_after", "must be above 0 seconds")?;
        need(self.control.window >= 1, "control.window", "must be at least 1")?;
        need(self.control.keep_checkpoints >= 1, "control.keep_checkpoints", "must be at least 1")?;
        need(!self.stages.is_empty(), "stages", "must name at least one stage")?;
        for (i, stage) in self.stages.iter().enumerate() {
            stage
                .check(&self.workers, self.decoding.beams)
                .map_err(|(key, problem)| (format!("stages[{i}].{key}"), problem))?;
            let repeated = self.stages[..i].iter().any(|other| other.name == stage.name);
            need(!repeated, &format!("stages[{i}].name"), "is the name of an earlier stage")?;
        }
        Ok(())
    }
}

impl Stage {
    fn check(&self, workers: &Workers, beams: u32) -> Result<(), Problem> {
        need(!self.name.is_empty() && file_name(&self.name), "name", "must be letters, digits, `-`, `_` or `.`")?;
        need(self.steps >= 1, "steps", "must be at least 1")?;
        need(self.batch >= workers.max, "batch", "must give every one of workers.max a sample")?;
        need(self.micro_batch != Some(0), "micro_batch", "must be at least 1")?;
        need(self.evaluate_every != Some(0), "evaluate_every", "must be at least 1")?;
        need(self.checkpoint_every != Some(0), "checkpoint_every", "must be at least 1")?;
        let contrastive = self.objective == Objective::Contrastive;
        need(!contrastive || self.micro_batch.is_none(), "micro_batch", "cannot split a contrastive batch")?;
        need(self.objective != Objective::Dico || beams >= 2, "objective", "dico needs decoding.beams of at least 2")?;
        need(positive(self.dico.beta), "dico.beta", "must be above 0")?;
        need(self.dico.tau >= 0.0 && self.dico.tau.is_finite(), "dico.tau", "must be 0 or above")?;
        let optimizer = &self.optimizer;
        need(positive(optimizer.learning_rate), "optimizer.learning_rate", "must be above 0")?;
        let decay = |beta: &f64| (0.0..1.0).contains(beta);
        need(optimizer.betas.iter().all(decay), "optimizer.betas", "must be in 0..1")?;
        need(positive(optimizer.epsilon), "optimizer.epsilon", "must be above 0")?;
        need(optimizer.weight_decay >= 0.0, "optimizer.weight_decay", "must be 0 or above")?;
        need(optimizer.clip_norm.is_none_or(positive), "optimizer.clip_norm", "must be above 0")?;
        need((0.0..=1.0).contains(&self.schedule.warmup), "schedule.warmup", "must be a fraction in 0..=1")
    }
}

fn need(holds: bool, key: &str, problem: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err((key.to_owned(), problem.to_owned())) }
}

fn positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

/// Names become parts of paths and metric labels.
fn file_name(name: &str) -> bool {
    name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}
