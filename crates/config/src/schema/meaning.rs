//! Combinations of settings that are each valid, but cannot mean what they say together. Those that
//! nobody means are refused, others are warned about.

use super::check::{Problem, need};
use super::{
    Data, GuardAction, NamedEvaluator, Objective, Positives, ProjectionInit, Rewards, Rule, RunFile, Stage, Trainable,
};
use crate::metrics::{Metric, Source};

const NEEDS_CAPTIONER: &str = "nothing has trained the captioner: put a stage with `objective: cross_entropy` before it, or set \
                               captioner.weights";
const NEEDS_EVALUATOR: &str = "nothing has trained the evaluator: put a stage with `objective: contrastive` before it, or set \
                               evaluator.weights";

/// A stage, and what the run has when it begins.
struct StageStart<'a> {
    stage: &'a Stage,
    run: &'a RunFile,
    captioner_is_trained: bool,
    /// Whether the primary evaluator has been trained by an earlier stage.
    has_trained_evaluator: bool,
}

impl StageStart<'_> {
    fn is_trained(&self, evaluator: &NamedEvaluator<'_>) -> bool {
        evaluator.settings.weights.is_some() || self.has_trained_evaluator
    }

    /// Whether evaluations of the stage can measure the metric `name`, and training can change it.
    fn check_metric(&self, key: &str, name: &str) -> Result<(), Problem> {
        let Some((Metric { source, .. }, evaluator)) = self.run.metric(name) else { return Ok(()) };
        let unable = format!("`{name}` comes from the evaluator, and {NEEDS_EVALUATOR}");
        let trains = self.stage.objective == Objective::Contrastive;
        need(trains || evaluator.is_none_or(|evaluator| self.is_trained(&evaluator)), key, &unable)?;
        let of_captions = matches!(source, Source::References | Source::Captions | Source::Scenes);
        let constant = format!(
            "evaluations of a contrastive stage score captions that people wrote: `{name}` never changes; choose a score of the \
             evaluator"
        );
        need(!(of_captions && self.stage.objective == Objective::Contrastive), key, &constant)
    }

    fn check_rule(&self, rule: &Rule) -> Result<(), Problem> {
        let Some((metric, _)) = self.run.metric(&rule.metric) else { return Ok(()) };
        self.check_metric("metric", &rule.metric)?;
        let [low, high] = metric.range;
        let never_above = rule.above.zip(high).is_some_and(|(bound, high)| bound >= high);
        let never_below = rule.below.zip(low).is_some_and(|(bound, low)| bound <= low);
        let (name, Metric { unit, .. }) = (&rule.metric, metric);
        let range = |of: Option<f64>| of.map(|bound| format!("{bound:.2}")).unwrap_or_default();
        need(!never_above, "above", &format!("`{name}` ({unit}) is never above {}", range(high)))?;
        need(!never_below, "below", &format!("`{name}` ({unit}) is never below {}", range(low)))?;
        let steps = self.stage.steps;
        let too_long = format!("is {}, and the stage has {steps} steps: the rule is never triggered", rule.for_);
        need(!metric.source.is_step() || u64::from(rule.for_) <= steps, "for", &too_long)
    }

    fn check(&self) -> Result<(), Problem> {
        let Stage { objective, metric: selects, guard, .. } = self.stage;
        let name = objective.name();
        let untrained = format!("`{name}` fine-tunes the captioner, and {NEEDS_CAPTIONER}");
        need(!objective.is_rewarded() || self.captioner_is_trained, "objective", &untrained)?;
        if let Some((key, rewards)) = self.stage.rewards() {
            for (reward, _) in rewards.iter().filter(|(_, weight)| **weight != 0.0) {
                let name = reward.name();
                let problem = format!("the reward `{name}` comes from the evaluator, and {NEEDS_EVALUATOR}");
                let evaluator = self.run.named_evaluator(name);
                need(evaluator.is_none_or(|evaluator| self.is_trained(&evaluator)), key, &problem)?;
            }
        }
        if let Some(metric) = selects {
            self.check_metric("metric", metric)?;
        }
        for (i, rule) in guard.iter().enumerate() {
            self.check_rule(rule).map_err(|(key, problem)| (format!("guard[{i}].{key}"), problem))?;
        }
        Ok(())
    }

    /// What the stage's settings hardly mean.
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
        let evaluations = stage.evaluations();
        let alone = "there is only one evaluation, of the last step: set `evaluate_every` or `evaluate_first`";
        warn(stage.metric.is_some() && evaluations == 1, "metric", alone.to_owned());
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
        let adapts = stage.contrastive.trainable != Trainable::All;
        let problem = "trains a part of an evaluator that nothing has trained: set evaluator.weights, or put a stage before it that \
                       trains all";
        warn(adapts && !self.is_trained(&self.run.primary_evaluator()), "contrastive.trainable", problem.to_owned());
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
        let evaluations = self.stage.evaluations();
        if !source.is_step() && u64::from(rule.for_) > evaluations {
            let problem = format!(
                "is {}, and the stage has {evaluations} evaluations: the rule is never triggered, unless `coordinator evaluate` \
                 adds some",
                rule.for_
            );
            found.push(("for", problem));
        }
        let saves =
            self.stage.metric.is_some() || self.stage.checkpoint_every.is_some_and(|every| every <= self.stage.steps);
        if rule.action == GuardAction::Rollback && !saves {
            let problem =
                "goes back to the beginning of the stage: set `checkpoint_every` or `metric` to save states on the way";
            found.push(("action", problem.to_owned()));
        }
        found
    }
}

impl Stage {
    /// The rewards of a rewarded stage, and their key.
    pub(super) fn rewards(&self) -> Option<(&'static str, &Rewards)> {
        match self.objective {
            Objective::Dico => Some(("dico.reward", &self.dico.reward)),
            Objective::Scst => Some(("scst.reward", &self.scst.reward)),
            Objective::Contrastive | Objective::CrossEntropy => None,
        }
    }

    /// The evaluations that are planned.
    fn evaluations(&self) -> u64 {
        let regular = self.evaluate_every.map_or(1, |every| self.steps.div_ceil(every));
        regular.saturating_add(u64::from(self.evaluate_first))
    }
}

impl RunFile {
    /// The stages, each with what the run has when it begins.
    fn begun(&self) -> impl Iterator<Item = (usize, StageStart<'_>)> {
        let has_trained =
            |stages: &[Stage], trains: fn(Objective) -> bool| stages.iter().any(|stage| trains(stage.objective));
        self.stages.iter().enumerate().map(move |(i, stage)| {
            let before = &self.stages[..i];
            let captioner_is_trained = self.captioner.weights.is_some()
                || has_trained(before, |objective| objective == Objective::CrossEntropy);
            let has_trained_evaluator = has_trained(before, |objective| objective == Objective::Contrastive);
            (i, StageStart { stage, run: self, captioner_is_trained, has_trained_evaluator })
        })
    }

    /// Whether the captioner uses the evaluator's vision encoder.
    pub(super) fn shares_vision_encoder(&self) -> bool {
        self.captioner.weights.is_none() && self.captioner.vision_encoder.is_none()
    }

    /// Refuses combinations that nobody means.
    pub(super) fn check_meaning(&self) -> Result<(), Problem> {
        for (i, begun) in self.begun() {
            begun.check().map_err(|(key, problem)| (format!("stages[{i}].{key}"), problem))?;
            let earlier = self.stages[..i].iter().find(|stage| stage.objective != Objective::Contrastive);
            // The last projections come after what the captioner sees.
            if let Some(earlier) = earlier
                && begun.stage.objective == Objective::Contrastive
                && begun.stage.contrastive.trainable != Trainable::Projections
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

    /// Settings that are allowed, but hardly meant: the path of the key, and what is odd about it.
    pub(crate) fn warnings(&self) -> Vec<Problem> {
        let mut found = self.model_warnings();
        found.extend(self.data.warnings(&self.stages));
        for (i, begun) in self.begun() {
            let of_stage = begun.warnings().into_iter();
            found.extend(of_stage.map(|(key, problem)| (format!("stages[{i}].{key}"), problem)));
        }
        found
    }

    fn model_warnings(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        let evaluator = self.primary_evaluator();
        if evaluator.settings.preset.is_some() && !self.trains_evaluator() {
            let sees = if self.shares_vision_encoder() { ", and the captioner's vision encoder is random" } else { "" };
            let problem = format!(
                "no stage trains the evaluator: its scores in evaluations say nothing{sees}; add a `contrastive` stage, or set \
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
            let weighs = |weight: fn(&Stage) -> f64| stages.iter().any(|stage| weight(stage) > 0.0);
            let unused = [
                ("images", images.is_some() && !weighs(|stage| stage.contrastive.generated_images)),
                ("captions", captions.is_some() && !weighs(|stage| stage.contrastive.generated_captions)),
            ];
            for (key, _) in unused.into_iter().filter(|(_, unused)| *unused) {
                let problem = format!("is not used: no stage sets contrastive.generated_{key}");
                found.push((format!("data.positives.{key}"), problem));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    const RUN: &str = "
name: test
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages:
";
    const CLIP: &str =
        "{ name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
    const XE: &str = "{ name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
    const DICO: &str = "{ name: dico, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
    const SCST: &str = "{ name: scst, objective: scst, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";

    fn run(head: &str, stages: &[String]) -> String {
        stages.iter().fold(head.to_owned(), |text, stage| format!("{text}  - {stage}\n"))
    }

    fn with(stage: &str, more: &str) -> String {
        stage.replace("steps: 9,", &format!("steps: 9, {more},"))
    }

    /// What the run file is refused for; nothing if it is not.
    fn problem(text: &str) -> String {
        RunFile::parse(Path::new("run.yaml"), text).err().map_or_else(String::new, |error| error.to_string())
    }

    fn warnings(text: &str) -> Vec<String> {
        let (_, warnings) = RunFile::parse_with_warnings(Path::new("run.yaml"), text).unwrap();
        warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn rewards_of_models_that_nothing_has_trained_are_refused_and_the_missing_stage_is_named() {
        let stages = |all: &[&str]| run(RUN, &all.iter().map(|&stage| stage.to_owned()).collect::<Vec<_>>());
        for (all, expected) in [
            (
                &[DICO][..],
                "run.yaml:9:30: stages[0].objective: `dico` fine-tunes the captioner, and nothing has trained",
            ),
            (
                &[CLIP, SCST],
                "stages[1].objective: `scst` fine-tunes the captioner, and nothing has trained the captioner: put a stage with `objective: cross_entropy` before it, or set captioner.weights",
            ),
            (
                &[XE, DICO],
                "stages[1].dico.reward: the reward `pac_s` comes from the evaluator, and nothing has trained the evaluator: put a stage with `objective: contrastive` before it, or set evaluator.weights",
            ),
            (&[XE, SCST, CLIP], "stages[1].scst.reward: the reward `pac_s`"),
        ] {
            let found = problem(&stages(all));
            assert!(found.contains(expected), "{all:?}: {found}");
        }
        assert_eq!(problem(&stages(&[CLIP, XE, DICO, SCST])), "");
        // Weights take the place of a stage, and CIDEr-D needs no evaluator.
        let head = RUN.replace("captioner: { preset: tiny }", "captioner: { weights: folder }");
        let by_cider = with(SCST, "scst: { reward: { cider: 1, pac_s: 0 } }");
        assert_eq!(problem(&run(&head, &[by_cider])), "");
        let head = head.replace("evaluator: { preset: tiny }", "evaluator: { weights: pac.pth }");
        assert_eq!(problem(&run(&head, &[DICO.to_owned()])), "");
    }

    #[test]
    fn scores_that_say_nothing_neither_select_nor_guard() {
        let metric = |name: &str| format!("evaluate_every: 3, metric: {name}");
        let guard = |name: &str| format!("guard: [{{ metric: {name}, below: 0.1, action: warn }}]");
        for name in ["ref_pac_s", "retrieval_r1"] {
            for setting in [metric(name), guard(name)] {
                let found = problem(&run(RUN, &[with(XE, &setting)]));
                assert!(
                    found.contains(&format!("`{name}` comes from the evaluator, and nothing has trained")),
                    "{found}"
                );
                assert_eq!(problem(&run(RUN, &[CLIP.to_owned(), with(XE, &setting)])), "");
                assert_eq!(problem(&run(RUN, &[with(CLIP, &setting)])), "");
            }
        }
        for setting in [metric("cider"), guard("bleu_4")] {
            assert_eq!(problem(&run(RUN, &[with(XE, &setting)])), "");
            let found = problem(&run(RUN, &[with(CLIP, &setting)]));
            assert!(found.contains("score captions that people wrote"), "{found}");
        }
    }

    #[test]
    fn a_vision_encoder_is_not_changed_under_a_captioner() {
        let stages = [XE.to_owned(), CLIP.to_owned()];
        let found = problem(&run(RUN, &stages));
        assert!(
            found.contains("stages[1].objective: `contrastive` changes the vision encoder that stage xe"),
            "{found}"
        );
        let own = RUN.replace("captioner: { preset: tiny }", "captioner: { preset: tiny, vision_encoder: clip.pt }");
        assert_eq!(problem(&run(&own, &stages)), "");
        let trainable = |what: &str| with(CLIP, &format!("contrastive: {{ trainable: {what} }}"));
        assert_eq!(problem(&run(RUN, &[XE.to_owned(), trainable("projections")])), "");
        assert!(problem(&run(RUN, &[XE.to_owned(), trainable("{ lora: {} }")])).contains("changes the vision encoder"));
    }

    #[test]
    fn rules_that_cannot_be_broken_are_refused() {
        let stages = |rule: &str| {
            run(RUN, &[CLIP.to_owned(), XE.to_owned(), with(DICO, &format!("guard: [{{ {rule}, action: warn }}]"))])
        };
        for (rule, expected) in [
            (
                "metric: incorrect_endings, above: 5",
                "above: `incorrect_endings` (share of captions) is never above 1.00",
            ),
            ("metric: ref_pac_s, above: 1.5", "above: `ref_pac_s` (mean score per image) is never above 1.33"),
            ("metric: cider, below: 0", "below: `cider` (mean score per image) is never below 0.00"),
            ("metric: kl, above: 0.5, for: 10", "for: is 10, and the stage has 9 steps"),
        ] {
            let found = problem(&stages(rule));
            assert!(found.contains(&format!("stages[2].guard[0].{expected}")), "{rule}: {found}");
        }
        for rule in ["metric: rep_4, above: 5", "metric: kl, below: -1, for: 9", "metric: bleu_4, below: 0.1"] {
            assert_eq!(problem(&stages(rule)), "", "{rule}");
        }
    }

    #[test]
    fn what_is_hardly_meant_is_warned_about_with_its_place() {
        let stages = |more: &str| run(RUN, &[CLIP.to_owned(), XE.to_owned(), with(DICO, more)]);
        for (more, expected) in [
            (
                "evaluate_every: 10",
                "stages[2].evaluate_every: is 10, and the stage has 9 steps: only the last step is evaluated",
            ),
            ("checkpoint_every: 10", "stages[2].checkpoint_every: is 10, and the stage has 9 steps: only the last"),
            ("metric: cider", "stages[2].metric: there is only one evaluation"),
            (
                "metric: cider, evaluate_every: 4, patience: 3",
                "stages[2].patience: is 3, and the stage has 3 evaluations",
            ),
            ("micro_batch: 5", "stages[2].micro_batch: is above the batch of 4"),
            (
                "schedule: { warmup: 0.01 }",
                "stages[2].schedule.warmup: is a fraction: 0.01 of 9 steps is less than one",
            ),
            ("schedule: { warmup: 1 }", "stages[2].schedule.warmup: is a fraction: 1 means"),
            (
                "schedule: { warmup_from_zero: true }",
                "stages[2].schedule.warmup_from_zero: has no effect: `warmup` is 0",
            ),
            (
                "guard: [{ metric: caption_length, above: -1, action: warn }]",
                "guard[0].above: `caption_length` is always",
            ),
            (
                "guard: [{ metric: rep_4, above: 1, for: 2, action: warn }]",
                "guard[0].for: is 2, and the stage has 1 eval",
            ),
            ("guard: [{ metric: kl, above: 1, action: rollback }]", "guard[0].action: goes back to the beginning"),
        ] {
            let found = warnings(&stages(more));
            assert!(found.len() == 1 && found[0].contains(expected), "{more}: {found:?}");
            assert!(found[0].starts_with("run.yaml:11:"), "{found:?}");
        }
        for good in [
            "evaluate_every: 9, checkpoint_every: 9",
            "metric: cider, evaluate_every: 4, patience: 2",
            "metric: cider, evaluate_first: true",
            "schedule: { warmup: 0.5, warmup_from_zero: true }",
            "guard: [{ metric: kl, above: 1, action: rollback }], checkpoint_every: 3",
        ] {
            assert_eq!(warnings(&stages(good)), Vec::<String>::new(), "{good}");
        }
        let untrained = warnings(&run(RUN, &[XE.to_owned()]));
        assert!(untrained.len() == 1 && untrained[0].contains("evaluator.preset: no stage trains the evaluator"));
        for trainable in ["projections", "{ lora: {} }"] {
            let stage = with(CLIP, &format!("contrastive: {{ trainable: {trainable} }}"));
            let alone = warnings(&run(RUN, std::slice::from_ref(&stage)));
            assert!(
                alone.len() == 1 && alone[0].contains("stages[0].contrastive.trainable: trains a part of an evaluator"),
                "{alone:?}"
            );
            let second = stage.replace("name: clip", "name: part");
            assert_eq!(warnings(&run(RUN, &[CLIP.to_owned(), second])), Vec::<String>::new());
        }
        let head =
            RUN.replace("captioner: { preset: tiny }", "captioner: { weights: folder, projection_init: uniform }");
        let trained = [CLIP.to_owned(), DICO.to_owned()];
        let found = warnings(&run(&head, &trained));
        assert!(
            found.len() == 1 && found[0].contains("captioner.projection_init: has no effect: the projection comes"),
            "{found:?}"
        );
        let dropout = |probability: &str| {
            RUN.replace(
                "captioner: { preset: tiny }",
                &format!("captioner: {{ preset: tiny, dropout: {probability} }}"),
            )
            .replace("stages:", "decoding: { candidate_dropout: true }\nstages:")
        };
        for (head, stages, expected) in [
            (dropout("0"), &[CLIP, XE, DICO][..], "has no effect: captioner.dropout is 0"),
            (dropout("0.1"), &[CLIP, XE], "has no effect: no stage generates candidates"),
        ] {
            let found = warnings(&run(&head, &stages.iter().map(|&stage| stage.to_owned()).collect::<Vec<_>>()));
            assert!(
                found.len() == 1 && found[0].contains(&format!("decoding.candidate_dropout: {expected}")),
                "{found:?}"
            );
        }
        let all = [CLIP, XE, SCST].map(str::to_owned);
        assert_eq!(warnings(&run(&dropout("0.1"), &all)), Vec::<String>::new());
        let tars = RUN.replace(
            "karpathy: { annotations: annotations.json, images: images }",
            "webdataset: { train: a.tar, validation: a.tar }, positives: { images: more }",
        );
        let found = warnings(&run(&tars, &[CLIP.to_owned()]));
        assert!(
            found.len() == 2 && found[0].contains("data.webdataset.validation: is the training split"),
            "{found:?}"
        );
        assert!(found[1].contains("data.positives.images: is not used"), "{found:?}");
    }

    proptest! {
        #[test]
        fn stages_are_taken_exactly_if_each_finds_trained_what_it_needs(
            kinds in proptest::collection::vec(0..4_usize, 1..6), vision in any::<bool>(),
        ) {
            let stages: Vec<String> = kinds
                .iter()
                .enumerate()
                .map(|(i, kind)| [CLIP, XE, SCST, DICO][*kind].replacen("name: ", &format!("name: s{i}-"), 1))
                .collect();
            let head = if vision { RUN.replace("preset: tiny }\nev", "preset: tiny, vision_encoder: clip.pt }\nev") } else { RUN.to_owned() };
            let before = |i: usize, kind: usize| kinds[..i].contains(&kind);
            let is_good = (0..kinds.len()).all(|i| match kinds[i] {
                0 => vision || kinds[..i].iter().all(|kind| *kind == 0),
                1 => true,
                _ => before(i, 0) && before(i, 1),
            });
            let found = problem(&run(&head, &stages));
            prop_assert_eq!(found.is_empty(), is_good, "{:?}: {}", kinds, found);
        }
    }
}
