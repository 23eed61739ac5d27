//! Settings that are valid one by one but contradict each other, or have no effect. Contradictions
//! are refused, settings without effect cause warnings.

use super::check::{Problem, need};
use super::{
    Contrastive, Data, GuardAction, NamedEvaluator, Objective, Positives, ProjectionInit, Rewards, Rule, RunFile,
    Stage, Trainable,
};
use metric_catalogue::{Metric, Source};

const NEEDS_CAPTIONER: &str = "nothing has trained the captioner: put a stage with `objective: cross_entropy` before it, or set \
                               captioner.weights";
const NEEDS_EVALUATOR: &str = "nothing has trained the evaluator: put a stage with `objective: contrastive` before it, or set \
                               evaluator.weights";

/// A stage, with the state of the run when it begins.
struct StageStart<'a> {
    stage: &'a Stage,
    run: &'a RunFile,
    /// Whether the captioner has weights, or an earlier stage has trained it from scratch.
    captioner_is_trained: bool,
    /// Whether an earlier stage has trained the primary evaluator.
    has_trained_evaluator: bool,
}

impl StageStart<'_> {
    fn is_trained(&self, evaluator: &NamedEvaluator<'_>) -> bool {
        evaluator.settings.weights.is_some() || self.has_trained_evaluator
    }

    /// Refuses the metric `name` for `key` unless evaluations of the stage can measure it and
    /// training can change it.
    fn check_metric(&self, key: &str, name: &str) -> Result<(), Problem> {
        let Some((Metric { source, .. }, evaluator)) = self.run.metric(name) else { return Ok(()) };
        let untrained = format!("`{name}` comes from the evaluator, and {NEEDS_EVALUATOR}");
        let is_contrastive = self.stage.objective.trains_evaluator();
        need(is_contrastive || evaluator.is_none_or(|evaluator| self.is_trained(&evaluator)), key, &untrained)?;
        let of_captions = matches!(source, Source::References | Source::Captions | Source::Scenes);
        let constant = format!(
            "evaluations of a contrastive stage score the reference captions: `{name}` never changes; choose a score of the \
             evaluator"
        );
        need(!(of_captions && is_contrastive), key, &constant)
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), Problem> {
        let Some((metric, _)) = self.run.metric(&rule.metric) else { return Ok(()) };
        self.check_metric("metric", &rule.metric)?;
        let [low, high] = metric.range;
        let never_above = rule.above.zip(high).is_some_and(|(bound, high)| bound >= high);
        let never_below = rule.below.zip(low).is_some_and(|(bound, low)| bound <= low);
        let (name, Metric { unit, .. }) = (&rule.metric, metric);
        let shown = |limit: Option<f64>| limit.map(|limit| format!("{limit:.2}")).unwrap_or_default();
        need(!never_above, "above", &format!("`{name}` ({unit}) is never above {}", shown(high)))?;
        need(!never_below, "below", &format!("`{name}` ({unit}) is never below {}", shown(low)))?;
        let steps = self.stage.steps;
        let too_long = format!("is {}, and the stage has {steps} steps: the rule is never triggered", rule.for_);
        need(!metric.source.is_step() || u64::from(rule.for_) <= steps, "for", &too_long)
    }

    fn check(&self) -> Result<(), Problem> {
        let Stage { objective, metric: selection_metric, guard, .. } = self.stage;
        let name = objective.name();
        let untrained = format!("`{name}` fine-tunes the captioner, and {NEEDS_CAPTIONER}");
        need(!objective.is_rewarded() || self.captioner_is_trained, "objective", &untrained)?;
        if let Some((key, rewards)) = self.stage.rewards() {
            for (reward, _) in rewards.iter().filter(|(_, weight)| **weight != 0.0) {
                let name = reward.name();
                let problem = format!("the reward `{name}` comes from the evaluator, and {NEEDS_EVALUATOR}");
                let evaluator = self.run.named_evaluator(name);
                need(evaluator.is_none_or(|evaluator| self.is_trained(&evaluator)), &key, &problem)?;
            }
        }
        if let Some(metric) = selection_metric {
            self.check_metric("metric", metric)?;
        }
        for (i, rule) in guard.iter().enumerate() {
            self.check_rule(rule).map_err(|(key, problem)| (format!("guard[{i}].{key}"), problem))?;
        }
        Ok(())
    }

    /// Settings of the stage that have no effect or an unlikely one.
    fn warnings(&self) -> Vec<Problem> {
        let stage = self.stage;
        let steps = stage.steps;
        let mut found = Vec::new();
        let mut warn = |applies: bool, key: &str, problem: String| {
            if applies {
                found.push((key.to_owned(), problem));
            }
        };
        for (key, every, what) in [
            ("evaluate_every", stage.evaluate_every, "evaluated"),
            ("checkpoint_every", stage.checkpoint_every, "saved"),
        ] {
            let every = every.unwrap_or(1);
            let problem = format!("is {every}, and the stage has {steps} steps: only the last step is {what}");
            warn(every > steps, key, problem);
        }
        let evaluations = stage.planned_evaluation_count();
        let only_one = "there is only one evaluation, of the last step: set `evaluate_every` or `evaluate_first`";
        warn(stage.metric.is_some() && evaluations == 1, "metric", only_one.to_owned());
        let patience = stage.patience.unwrap_or(0);
        let problem = format!("is {patience}, and the stage has {evaluations} evaluations: it never ends early");
        warn(u64::from(patience) >= evaluations, "patience", problem);
        let problem = format!("is above the batch of {}: it has no effect", stage.batch);
        warn(stage.micro_batch.is_some_and(|part| part > stage.batch), "micro_batch", problem);
        let warmup = stage.schedule.warmup;
        let problem = format!("is a fraction: {warmup} of {steps} steps is less than one step");
        warn(warmup > 0.0 && warmup * (steps as f64) < 1.0, "schedule.warmup", problem);
        let problem = "is a fraction: 1 means that the learning rate only rises, up to the last step".to_owned();
        warn(warmup >= 1.0, "schedule.warmup", problem);
        let problem = "has no effect: `warmup` is 0".to_owned();
        warn(stage.schedule.warmup_from_zero && warmup == 0.0, "schedule.warmup_from_zero", problem);
        let contrastive = stage.objective.contrastive();
        let trains_a_part = contrastive.is_some_and(|settings| settings.trainable != Trainable::All);
        let problem = "trains a part of an evaluator that nothing has trained: set evaluator.weights, or put a stage before it that \
                       trains all";
        warn(
            trains_a_part && !self.is_trained(&self.run.primary_evaluator()),
            "objective.contrastive.trainable",
            problem.to_owned(),
        );
        for (i, rule) in stage.guard.iter().enumerate() {
            for (key, problem) in self.rule_warnings(rule) {
                warn(true, &format!("guard[{i}].{key}"), problem);
            }
        }
        found
    }

    fn rule_warnings(&self, rule: &Rule) -> Vec<(&'static str, String)> {
        let name = &rule.metric;
        let Some((Metric { source, range: [low, high], .. }, _)) = self.run.metric(name) else { return Vec::new() };
        let mut found = Vec::new();
        let always_above = rule.above.zip(*low).is_some_and(|(bound, low)| bound < low);
        let always_below = rule.below.zip(*high).is_some_and(|(bound, high)| bound > high);
        let key = if rule.above.is_some() { "above" } else { "below" };
        if always_above || always_below {
            found.push((key, format!("`{name}` is always beyond this bound")));
        }
        let evaluations = self.stage.planned_evaluation_count();
        if !source.is_step() && u64::from(rule.for_) > evaluations {
            let problem = format!(
                "is {}, and the stage has {evaluations} evaluations: the rule is never triggered, unless `coordinator evaluate` \
                 adds some",
                rule.for_
            );
            found.push(("for", problem));
        }
        let saves_states =
            self.stage.metric.is_some() || self.stage.checkpoint_every.is_some_and(|every| every <= self.stage.steps);
        if rule.action == GuardAction::Rollback && !saves_states {
            let problem =
                "goes back to the beginning of the stage: set `checkpoint_every` or `metric` to save states on the way";
            found.push(("action", problem.to_owned()));
        }
        found
    }
}

impl Stage {
    /// The rewards of a rewarded stage, and their key.
    pub(super) fn rewards(&self) -> Option<(String, &Rewards)> {
        let key = || format!("objective.{}.reward", self.objective.name());
        self.objective.rewards().map(|rewards| (key(), rewards))
    }

    /// The number of evaluations, without those that `coordinator evaluate` requests.
    fn planned_evaluation_count(&self) -> u64 {
        let regular = self.evaluate_every.map_or(1, |every| self.steps.div_ceil(every));
        regular.saturating_add(u64::from(self.evaluate_first))
    }
}

impl RunFile {
    /// The stages, each with the state of the run when it begins.
    fn stage_starts(&self) -> impl Iterator<Item = (usize, StageStart<'_>)> {
        let has_trained =
            |stages: &[Stage], trains: fn(&Objective) -> bool| stages.iter().any(|stage| trains(&stage.objective));
        self.stages.iter().enumerate().map(move |(i, stage)| {
            let before = &self.stages[..i];
            let captioner_is_trained =
                self.captioner.weights.is_some() || has_trained(before, Objective::trains_captioner_on_references);
            let has_trained_evaluator = has_trained(before, Objective::trains_evaluator);
            (i, StageStart { stage, run: self, captioner_is_trained, has_trained_evaluator })
        })
    }

    /// Whether the captioner uses the evaluator's vision encoder.
    pub(super) fn shares_vision_encoder(&self) -> bool {
        self.captioner.weights.is_none() && self.captioner.vision_encoder.is_none()
    }

    /// Refuses settings that contradict each other.
    pub(super) fn check_consistency(&self) -> Result<(), Problem> {
        for (i, start) in self.stage_starts() {
            start.check().map_err(|(key, problem)| (format!("stages[{i}].{key}"), problem))?;
            let earlier = self.stages[..i].iter().find(|stage| !stage.objective.trains_evaluator());
            // Training of the projections alone is allowed: the captioner reads the hidden states
            // before the last projection.
            if let Some(earlier) = earlier
                && let Some(Contrastive { trainable, .. }) = start.stage.objective.contrastive()
                && *trainable != Trainable::Projections
                && self.shares_vision_encoder()
            {
                let problem = format!(
                    "`contrastive` changes the vision encoder that stage {} has trained the captioner with: put the stage before \
                     it, or set captioner.vision_encoder",
                    earlier.name
                );
                return Err((format!("stages[{i}].objective"), problem));
            }
        }
        Ok(())
    }

    /// Warnings: the path of a key, and why its value has no effect or an unlikely one.
    pub(crate) fn warnings(&self) -> Vec<Problem> {
        let mut found = self.model_warnings();
        found.extend(self.data.warnings(&self.stages));
        for (i, start) in self.stage_starts() {
            let of_stage = start.warnings().into_iter();
            found.extend(of_stage.map(|(key, problem)| (format!("stages[{i}].{key}"), problem)));
        }
        found
    }

    fn model_warnings(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let evaluator = self.primary_evaluator();
        if evaluator.settings.preset.is_some() && !self.trains_evaluator() {
            let consequence =
                if self.shares_vision_encoder() { ", and the captioner's vision encoder is random" } else { "" };
            let problem = format!(
                "no stage trains the evaluator: its scores in evaluations say nothing{consequence}; add a `contrastive` stage, or set \
                 evaluator.weights"
            );
            found.push((format!("{}.preset", evaluator.key()), problem));
        }
        if self.captioner.weights.is_some() && self.captioner.projection_init != ProjectionInit::default() {
            let problem = "has no effect: the projection comes with captioner.weights";
            found.push(("captioner.projection_init".to_owned(), problem.to_owned()));
        }
        let is_rewarded = self.stages.iter().any(|stage| stage.objective.is_rewarded());
        if self.decoding.candidate_dropout && (!is_rewarded || self.captioner.dropout == 0.0) {
            let reason = if is_rewarded { "captioner.dropout is 0" } else { "no stage generates candidates" };
            found.push(("decoding.candidate_dropout".to_owned(), format!("has no effect: {reason}")));
        }
        found
    }
}

impl Data {
    fn warnings(&self, stages: &[Stage]) -> Vec<Problem> {
        let mut found = Vec::new();
        let splits = [
            self.coco.as_ref().map(|coco| ("data.coco", coco.train.annotations == coco.validation.annotations)),
            self.webdataset.as_ref().map(|tars| ("data.webdataset", tars.train == tars.validation)),
        ];
        for (key, same) in splits.into_iter().flatten() {
            if same {
                let problem = "is the training split: evaluations say nothing about images that were not trained on";
                found.push((format!("{key}.validation"), problem.to_owned()));
            }
        }
        if let Some(Positives { images, captions }) = &self.positives {
            let has_weight = |weight: fn(&Contrastive) -> f64| {
                stages.iter().filter_map(|stage| stage.objective.contrastive()).any(|settings| weight(settings) > 0.0)
            };
            let unused = [
                ("images", images.is_some() && !has_weight(|settings| settings.generated_images)),
                ("captions", captions.is_some() && !has_weight(|settings| settings.generated_captions)),
            ];
            for (key, _) in unused.into_iter().filter(|(_, unused)| *unused) {
                let problem = format!("is not used: no stage sets objective.contrastive.generated_{key}");
                found.push((format!("data.positives.{key}"), problem));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
