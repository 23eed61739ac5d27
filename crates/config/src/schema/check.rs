//! Checks of values that the types cannot express.

use metric_catalogue::Direction;

use super::{Captioner, Contrastive, Control, Data, MAX_WORKERS, Reward, Rule, RunFile, Stage, Trainable, Workers};
use crate::error::{LengthError, unknown};

/// Maximal number of stages.
const MAX_STAGES: usize = 1_000;
/// Maximal number of updates of a stage. The number of samples, steps times batch, stays within 64
/// bits.
const MAX_STEPS: u64 = 1 << 40;
/// Maximal number of samples of a step.
const MAX_BATCH: u32 = 1 << 20;
/// Maximal value of `control.window`: steps beyond the last one that all members have reported.
const MAX_WINDOW: u32 = 10_000;
/// Shortest and longest timeout, in seconds; the longest is 30 days.
const TIMEOUTS: std::ops::RangeInclusive<f64> = 0.01..=2_592_000.0;

impl Data {
    /// The number of data formats that are given; a valid run file has one.
    fn source_count(&self) -> usize {
        let Self { karpathy, coco, webdataset, .. } = self;
        [karpathy.is_some(), coco.is_some(), webdataset.is_some()].into_iter().filter(|&given| given).count()
    }
}

/// The path of a key, and the problem with its value.
pub(crate) type Problem = (String, String);

impl RunFile {
    /// Checks all values. The error is the path of a key and the problem with it.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        need(!self.name.is_empty() && is_valid_name(&self.name), "name", "must be letters, digits, `-`, `_` or `.`")?;
        need(self.workers.min >= 1, "workers.min", "must be at least 1")?;
        need(self.workers.max >= self.workers.min, "workers.max", "must not be below workers.min")?;
        let too_many = format!("is {}, a run can have {MAX_WORKERS} workers at most", self.workers.max);
        need(self.workers.max <= MAX_WORKERS, "workers.max", &too_many)?;
        need(self.data.source_count() == 1, "data", "needs exactly one of `karpathy`, `coco` and `webdataset`")?;
        let Captioner { preset, weights, vision_encoder: vision, vision_clip, .. } = &self.captioner;
        need(preset.is_some() != weights.is_some(), "captioner", "needs either `preset` or `weights`")?;
        need(
            weights.is_none() || vision.is_none(),
            "captioner.vision_encoder",
            "comes with captioner.weights: take one of the two out",
        )?;
        let without_weights = "describes weights, and there are none";
        need(vision.is_some() || vision_clip.is_empty(), "captioner.vision_clip", without_weights)?;
        self.check_evaluators()?;
        let is_frozen = self.primary_evaluator().settings.weights.is_some() && !self.trains_evaluator();
        need(
            self.data.features.is_none() || is_frozen,
            "data.features",
            "can only be of frozen towers: give evaluator.weights and no contrastive stage",
        )?;
        need((0.0..1.0).contains(&self.captioner.dropout), "captioner.dropout", "must be in 0..1")?;
        need(self.captioner.max_target_length >= 3, "captioner.max_target_length", "must be at least 3")?;
        need((1..=64).contains(&self.decoding.beams), "decoding.beams", "must be in 1..=64")?;
        need((3..=77).contains(&self.decoding.max_length), "decoding.max_length", "must be in 3..=77")?;
        if let Some(preset) = self.captioner.preset {
            let problem = |LengthError { key, length, positions }| {
                (key.to_owned(), format!("is {length}, the captioner has {positions} positions"))
            };
            self.check_positions(preset.captioner_positions()).map_err(problem)?;
        }
        need(self.decoding.length_penalty.is_finite(), "decoding.length_penalty", "must be finite")?;
        let Control { heartbeat_timeout, stall_timeout, window, .. } = &self.control;
        let timeout_problem = "must be from 0.01 to 2592000 seconds (30 days)";
        need(TIMEOUTS.contains(heartbeat_timeout), "control.heartbeat_timeout", timeout_problem)?;
        need((1..=MAX_WINDOW).contains(window), "control.window", &format!("must be in 1..={MAX_WINDOW}"))?;
        need(TIMEOUTS.contains(stall_timeout), "control.stall_timeout", timeout_problem)?;
        need(self.checkpoints.keep >= 1, "checkpoints.keep", "must be at least 1")?;
        let url = self.checkpoints.url.as_deref();
        let is_supported = url.is_none_or(|url| url.starts_with("file:///") || url.starts_with("s3://"));
        need(is_supported, "checkpoints.url", "must be file:///FOLDER or s3://BUCKET/PREFIX")?;
        need(!self.stages.is_empty(), "stages", "must name at least one stage")?;
        let too_many = format!("are {}, a run can have {MAX_STAGES} at most", self.stages.len());
        need(self.stages.len() <= MAX_STAGES, "stages", &too_many)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let in_stage = |(key, problem): Problem| (format!("stages[{i}].{key}"), problem);
            stage.check(&self.workers, self.decoding.beams).map_err(in_stage)?;
            stage.check_against(self).map_err(in_stage)?;
            let repeated = self.stages[..i].iter().any(|other| other.name == stage.name);
            need(!repeated, &format!("stages[{i}].name"), "is the name of an earlier stage")?;
        }
        self.check_lora_factors()?;
        self.check_consistency()
    }

    /// Checks that all stages that train LoRA factors have the same settings of these factors,
    /// which exist from the beginning of the run.
    fn check_lora_factors(&self) -> Result<(), Problem> {
        let stages = self.stages.iter().enumerate();
        let mut trained = stages.filter_map(|(i, stage)| match &stage.objective.contrastive()?.trainable {
            Trainable::Lora(lora) => Some((i, &stage.name, lora)),
            Trainable::All | Trainable::Projections => None,
        });
        let Some((_, first, factors)) = trained.next() else { return Ok(()) };
        match trained.find(|(_, _, other)| *other != factors) {
            None => Ok(()),
            Some((i, ..)) => {
                let problem = format!("differs from that of stage {first}: the evaluator has one set of LoRA factors");
                Err((format!("stages[{i}].objective.contrastive.trainable.lora"), problem))
            }
        }
    }

    /// Checks that the run's maximal lengths of captions fit a captioner with this number of
    /// positions, such as one from `captioner.weights`.
    ///
    /// # Errors
    /// A length is too large.
    pub fn check_positions(&self, positions: usize) -> Result<(), LengthError> {
        let learns_targets = self.stages.iter().any(|stage| stage.objective.trains_captioner_on_references());
        let target = learns_targets.then_some(("captioner.max_target_length", self.captioner.max_target_length));
        for (key, length) in [("decoding.max_length", self.decoding.max_length)].into_iter().chain(target) {
            if length as usize > positions {
                return Err(LengthError { key, length, positions });
            }
        }
        Ok(())
    }
}

impl Stage {
    fn check(&self, workers: &Workers, beams: u32) -> Result<(), Problem> {
        need(!self.name.is_empty() && is_valid_name(&self.name), "name", "must be letters, digits, `-`, `_` or `.`")?;
        need(self.steps >= 1, "steps", "must be at least 1")?;
        let too_many = format!("is {}, a stage can have {MAX_STEPS} at most", self.steps);
        need(self.steps <= MAX_STEPS, "steps", &too_many)?;
        let Workers { max, .. } = workers;
        let too_few = format!(
            "is {}, and workers.max is {max}: every worker needs a sample of each step; raise the batch or lower workers.max",
            self.batch
        );
        need(self.batch >= *max, "batch", &too_few)?;
        let too_many = format!("is {}, a step can have {MAX_BATCH} samples at most", self.batch);
        need(self.batch <= MAX_BATCH, "batch", &too_many)?;
        need(self.micro_batch != Some(0), "micro_batch", "must be at least 1")?;
        need(self.evaluate_every != Some(0), "evaluate_every", "must be at least 1")?;
        need(self.checkpoint_every != Some(0), "checkpoint_every", "must be at least 1")?;
        let Self { objective, .. } = self;
        let name = objective.name();
        let split = format!("cannot split a {name} batch");
        need(!objective.needs_whole_batch() || self.micro_batch.is_none(), "micro_batch", &split)?;
        let least = objective.settings().min_candidates();
        let too_few = format!("{name} needs decoding.beams of at least {least}");
        need(beams >= least, "objective", &too_few)?;
        let in_settings = |(key, problem)| (format!("objective.{name}.{key}"), problem);
        objective.settings().check(beams).map_err(in_settings)?;
        need(self.patience != Some(0), "patience", "must be at least 1")?;
        need(self.patience.is_none() || self.metric.is_some(), "patience", "needs `metric`, to tell what is better")?;
        let can_count = self.patience.is_none() || self.evaluate_every.is_some();
        need(can_count, "patience", "needs `evaluate_every`: it counts evaluations")?;
        self.check_earlier_settings()?;
        let optimizer = &self.optimizer;
        need(positive(optimizer.learning_rate), "optimizer.learning_rate", "must be above 0")?;
        let decay = |beta: &f64| (0.0..1.0).contains(beta);
        need(optimizer.betas.iter().all(decay), "optimizer.betas", "must be in 0..1")?;
        need(positive(optimizer.epsilon), "optimizer.epsilon", "must be above 0")?;
        need(not_negative(optimizer.weight_decay), "optimizer.weight_decay", "must be 0 or above")?;
        need(optimizer.clip_norm.is_none_or(positive), "optimizer.clip_norm", "must be above 0")?;
        need((0.0..=1.0).contains(&self.schedule.warmup), "schedule.warmup", "must be a fraction in 0..=1")
    }

    /// Checks that the rest of the run has what the stage refers to: metrics, data and evaluators.
    fn check_against(&self, run: &RunFile) -> Result<(), Problem> {
        let RunFile { data, .. } = run;
        let scores = run.scores();
        if let Some(metric) = &self.metric {
            let selectable = scores.iter().filter(|(_, better)| *better == Direction::HigherIsBetter);
            let selectable: Vec<&str> = selectable.map(|(name, _)| name.as_str()).collect();
            need(selectable.contains(&metric.as_str()), "metric", &unknown("metric", metric, &selectable))?;
        }
        let mut watched: Vec<&str> = self.statistics().collect();
        watched.extend(scores.iter().map(|(name, _)| name.as_str()));
        for (i, rule) in self.guard.iter().enumerate() {
            rule.check(&watched).map_err(|(key, problem)| (format!("guard[{i}].{key}"), problem))?;
        }
        if let Some(Contrastive { generated_images, generated_captions, .. }) = self.objective.contrastive() {
            let positives = data.positives.as_ref();
            let images = positives.is_some_and(|positives| positives.images.is_some());
            let captions = positives.is_some_and(|positives| positives.captions.is_some());
            let key = |key: &str| format!("objective.contrastive.{key}");
            need(images || *generated_images == 0.0, &key("generated_images"), "needs data.positives.images")?;
            need(captions || *generated_captions == 0.0, &key("generated_captions"), "needs data.positives.captions")?;
        }
        let Some((key, rewards)) = self.rewards() else { return Ok(()) };
        let key = key.as_str();
        let mut weights = rewards.iter().filter(|(reward, _)| **reward != Reward::MissingEnd).map(|(_, weight)| weight);
        need(weights.any(|&weight| weight != 0.0), key, "needs at least one reward")?;
        need(rewards.values().all(|weight| weight.is_finite()), key, "needs finite weights")?;
        let penalty = rewards.get(&Reward::MissingEnd);
        let problem = "`missing_end` is a penalty: give it a weight below 0, such as -0.1";
        need(penalty.is_none_or(|&weight| weight < 0.0), key, problem)?;
        let evaluators = run.named_evaluators();
        let known: Vec<&str> =
            evaluators.iter().map(|evaluator| evaluator.name).chain(["cider", "missing_end"]).collect();
        for reward in rewards.keys() {
            let name = reward.name();
            let problem = format!("there is no evaluator `{name}`: the rewards are {}", known.join(", "));
            need(known.contains(&name), key, &problem)?;
        }
        Ok(())
    }
}

impl Rule {
    /// Checks the rule; `watched` has the names of all metrics that a rule of its stage can name.
    fn check(&self, watched: &[&str]) -> Result<(), Problem> {
        need(watched.contains(&self.metric.as_str()), "metric", &unknown("metric", &self.metric, watched))?;
        need(self.above.is_some() != self.below.is_some(), "metric", "needs either `above` or `below`")?;
        need(self.above.is_none_or(f64::is_finite), "above", "must be finite")?;
        need(self.below.is_none_or(f64::is_finite), "below", "must be finite")?;
        need(self.for_ >= 1, "for", "must be at least 1")
    }
}

impl Stage {
    /// The names of the metrics that the steps of the stage report.
    fn statistics(&self) -> impl Iterator<Item = &'static str> {
        let settings = self.objective.settings();
        metric_catalogue::TRAINING_METRICS.into_iter().filter(move |name| settings.reports(name))
    }
}

/// The error that `key` has `problem`, unless the requirement `holds`.
pub(super) fn need(holds: bool, key: &str, problem: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err((key.to_owned(), problem.to_owned())) }
}

pub(super) fn not_negative(value: f64) -> bool {
    value >= 0.0 && value.is_finite()
}

pub(super) fn positive(value: f64) -> bool {
    value > 0.0 && value.is_finite()
}

/// Whether `name` can be a part of paths and metric labels.
fn is_valid_name(name: &str) -> bool {
    name.len() <= 64
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

#[cfg(test)]
mod tests;
