//! Every key of a run file: its unit, and whether it may change while a run is under way.
//!
//! Paths have `[]` for the elements of a list. The order is that of the reference,
//! `docs/run-file.md`. The settings of objectives, such as `stages[].objective.dico.beta`, have no
//! rows: they are as mutable as `stages[].objective`.

use serde::{Deserialize, Serialize};

/// Whether a key may change between two starts of a run's coordinator. The order is from permissive
/// to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mutability {
    /// It may change whenever the coordinator starts. Parameters do not depend on it, except for
    /// rounding.
    Free,
    /// It may change from the next step on, with `coordinator serve --accept-changes`.
    NextStep,
    /// A run with another value is another run.
    Fixed,
}

impl Mutability {
    /// Says when the key may change, for messages and documents.
    #[must_use]
    pub fn describe(self) -> &'static str {
        match self {
            Self::Free => "may change freely",
            Self::NextStep => "may change from the next step on, with --accept-changes",
            Self::Fixed => "another value makes another run",
        }
    }
}

/// A key of a run file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Path from the top level, such as `stages[].optimizer.learning_rate`.
    pub path: &'static str,
    /// Whether it may change in a run.
    pub mutability: Mutability,
    /// Unit of the value, or what the value is, such as a path; empty if the type says enough.
    pub unit: &'static str,
}

const fn key(path: &'static str, mutability: Mutability, unit: &'static str) -> Key {
    Key { path, mutability, unit }
}

use Mutability::{Fixed, Free, NextStep};

/// The key whose value is an objective with its settings.
pub(crate) const OBJECTIVE: &str = "stages[].objective";

/// All keys that have a value of their own, except for the settings of objectives, in the order of
/// the reference.
pub const KEYS: &[Key] = &[
    key("name", Fixed, ""),
    key("seed", Fixed, ""),
    key("output", Free, "path"),
    key("vocabulary", Fixed, ""),
    // The parameters keep 32 bits, so training can continue in another format.
    key("compute_dtype", NextStep, ""),
    key("gradient_dtype", NextStep, ""),
    key("evaluators", Fixed, "evaluators by name"),
    key("workers.min", Free, "workers"),
    key("workers.max", Free, "workers"),
    // Paths may change freely: when workers join, their data are compared with those of the run.
    // Scenes, features and the preprocessing of images are not compared.
    key("data.scenes", NextStep, "path"),
    key("data.features", NextStep, "path"),
    key("data.skip_corrupt", NextStep, ""),
    key("data.exif", NextStep, ""),
    key("data.crop_offset", NextStep, ""),
    key("data.karpathy.annotations", Free, "path"),
    key("data.karpathy.images", Free, "path"),
    key("data.coco.train.annotations", Free, "path"),
    key("data.coco.train.images", Free, "path"),
    key("data.coco.validation.annotations", Free, "path"),
    key("data.coco.validation.images", Free, "path"),
    key("data.coco.test.annotations", Free, "path"),
    key("data.coco.test.images", Free, "path"),
    key("data.webdataset.train", Free, "path or URL pattern"),
    key("data.webdataset.validation", Free, "path or URL pattern"),
    key("data.webdataset.test", Free, "path or URL pattern"),
    key("data.positives.images", Free, "path"),
    key("data.positives.captions", Free, "path"),
    key("captioner.preset", Fixed, ""),
    key("captioner.weights", Fixed, "path"),
    key("captioner.vision_encoder", Fixed, "path"),
    key("captioner.dropout", NextStep, "probability"),
    key("captioner.max_target_length", NextStep, "tokens"),
    key("captioner.projection_init", Fixed, ""),
    key("captioner.vision_clip.family", Fixed, ""),
    key("captioner.vision_clip.activation", Fixed, ""),
    key("captioner.vision_clip.mean", Fixed, "red, green, blue"),
    key("captioner.vision_clip.std", Fixed, "red, green, blue"),
    key("captioner.vision_clip.vision_heads", Fixed, "heads"),
    key("captioner.vision_clip.text_heads", Fixed, "heads"),
    key("captioner.vision_clip.lora", Fixed, ""),
    key("evaluator.preset", Fixed, ""),
    key("evaluator.weights", Fixed, "path"),
    key("evaluator.score", Fixed, ""),
    key("evaluator.prefix", Fixed, ""),
    key("evaluator.reward_prefix", Fixed, ""),
    key("evaluator.text", Fixed, ""),
    key("evaluator.reward_text", Fixed, ""),
    key("evaluator.cut_candidates", Fixed, ""),
    key("evaluator.clip.family", Fixed, ""),
    key("evaluator.clip.activation", Fixed, ""),
    key("evaluator.clip.mean", Fixed, "red, green, blue"),
    key("evaluator.clip.std", Fixed, "red, green, blue"),
    key("evaluator.clip.vision_heads", Fixed, "heads"),
    key("evaluator.clip.text_heads", Fixed, "heads"),
    key("evaluator.clip.lora", Fixed, ""),
    // Scores before and after such a change could not be compared, and the candidates are part of
    // the objective.
    key("decoding.beams", Fixed, "beams"),
    key("decoding.max_length", Fixed, "tokens"),
    key("decoding.length_penalty", Fixed, ""),
    key("decoding.cut_length_includes_bos", Fixed, ""),
    key("decoding.candidate_dropout", Fixed, ""),
    // METEOR with other tables is another metric of the same name.
    key("scoring.meteor_jar", Fixed, "path"),
    key("scoring.meteor_paraphrases", Fixed, "path"),
    key("scoring.spice_jar", NextStep, "path"),
    key("stages[].name", Fixed, ""),
    key(OBJECTIVE, Fixed, ""),
    key("stages[].steps", Fixed, "steps"),
    key("stages[].batch", Fixed, "samples"),
    key("stages[].micro_batch", Free, "samples"),
    key("stages[].evaluate_every", NextStep, "steps"),
    key("stages[].evaluate_first", NextStep, ""),
    // Checkpoints of states that another metric would select may be deleted already.
    key("stages[].metric", Fixed, "name of a metric"),
    key("stages[].patience", NextStep, "evaluations"),
    key("stages[].checkpoint_every", NextStep, "steps"),
    key("stages[].optimizer.learning_rate", NextStep, ""),
    key("stages[].optimizer.betas", NextStep, ""),
    key("stages[].optimizer.epsilon", NextStep, ""),
    key("stages[].optimizer.weight_decay", NextStep, ""),
    key("stages[].optimizer.clip_norm", NextStep, ""),
    key("stages[].schedule.shape", NextStep, ""),
    key("stages[].schedule.warmup", NextStep, "fraction"),
    key("stages[].schedule.warmup_from_zero", NextStep, ""),
    key("stages[].guard[].metric", NextStep, "name of a metric"),
    key("stages[].guard[].above", NextStep, "in the unit of the metric"),
    key("stages[].guard[].below", NextStep, "in the unit of the metric"),
    key("stages[].guard[].for", NextStep, "steps or evaluations"),
    key("stages[].guard[].action", NextStep, ""),
    key("checkpoints.url", NextStep, "URL"),
    key("checkpoints.keep", Free, "checkpoints"),
    key("control.heartbeat_timeout", Free, "seconds"),
    key("control.stall_timeout", Free, "seconds"),
    key("control.window", Free, "steps"),
    key("control.sharding", Free, ""),
];

/// The key at a path, where a list's elements are `[]`.
pub(crate) fn key_at(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether `path` is that of an objective, or of settings of an objective.
pub(crate) fn is_of_objective(path: &str) -> bool {
    path.strip_prefix(OBJECTIVE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The strictest mutability of the keys below a path; [`Mutability::Fixed`] if there are none.
pub(crate) fn strictest_below(path: &str) -> Mutability {
    let below = |key: &&Key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with(['.', '[']));
    KEYS.iter().filter(below).map(|key| key.mutability).max().unwrap_or(Fixed)
}
