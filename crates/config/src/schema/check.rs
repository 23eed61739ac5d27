//! What types alone cannot say of a run file.

use statistics::names::{self, Better};

use super::{
    Baseline, Captioner, Contrastive, Control, Data, Dico, MAX_WORKERS, Objective, Reward, Rule, RunFile, Scst, Stage,
    Trainable, Workers,
};
use crate::error::unknown;

/// Most stages.
const MAX_STAGES: usize = 1_000;
/// Most updates of a stage. Numbers of samples, which are steps times batch, stay far from overflow.
const MAX_STEPS: u64 = 1 << 40;
/// Most samples of a step.
const MAX_BATCH: u32 = 1 << 20;
/// Most steps that workers may take beyond the last one that all have reported.
const MAX_WINDOW: u32 = 10_000;
/// Largest rank of LoRA factors. A weight of rank 768 gains nothing from a larger one.
const MAX_LORA_RANK: u32 = 256;
/// Shortest and longest timeout, in seconds; the longest is 30 days.
const TIMEOUTS: std::ops::RangeInclusive<f64> = 0.01..=2_592_000.0;

impl Data {
    fn sources(&self) -> usize {
        let Self { karpathy, coco, webdataset, .. } = self;
        [karpathy.is_some(), coco.is_some(), webdataset.is_some()].into_iter().filter(|&given| given).count()
    }
}

/// The path of a key, and what is wrong with its value.
pub(crate) type Problem = (String, String);

impl RunFile {
    /// Checks what types alone cannot say. The error is the key's path and what is wrong with it.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        need(!self.name.is_empty() && file_name(&self.name), "name", "must be letters, digits, `-`, `_` or `.`")?;
        need(self.workers.min >= 1, "workers.min", "must be at least 1")?;
        need(self.workers.max >= self.workers.min, "workers.max", "must not be below workers.min")?;
        let too_many = format!("is {}, a run can have {MAX_WORKERS} workers at most", self.workers.max);
        need(self.workers.max <= MAX_WORKERS, "workers.max", &too_many)?;
        need(self.data.sources() == 1, "data", "needs exactly one of `karpathy`, `coco` and `webdataset`")?;
        let Captioner { preset, weights, vision_encoder: vision, vision_clip, .. } = &self.captioner;
        need(preset.is_some() != weights.is_some(), "captioner", "needs either `preset` or `weights`")?;
        need(
            weights.is_none() || vision.is_none(),
            "captioner.vision_encoder",
            "comes with captioner.weights: take one of the two out",
        )?;
        let said_of_nothing = "is of the weights beside it, and there are none";
        need(vision.is_some() || vision_clip.is_empty(), "captioner.vision_clip", said_of_nothing)?;
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
            self.check_lengths(preset.captioner_positions())?;
        }
        need(self.decoding.length_penalty.is_finite(), "decoding.length_penalty", "must be finite")?;
        let Control { heartbeat_timeout, stall_timeout, window, .. } = &self.control;
        let in_range = "must be from 0.01 to 2592000 seconds (30 days)";
        need(TIMEOUTS.contains(heartbeat_timeout), "control.heartbeat_timeout", in_range)?;
        need((1..=MAX_WINDOW).contains(window), "control.window", &format!("must be in 1..={MAX_WINDOW}"))?;
        need(TIMEOUTS.contains(stall_timeout), "control.stall_timeout", in_range)?;
        need(self.checkpoints.keep >= 1, "checkpoints.keep", "must be at least 1")?;
        let to = self.checkpoints.url.as_deref();
        let known = to.is_none_or(|to| to.starts_with("file:///") || to.starts_with("s3://"));
        need(known, "checkpoints.url", "must be file:///FOLDER or s3://BUCKET/PREFIX")?;
        need(!self.stages.is_empty(), "stages", "must name at least one stage")?;
        let too_many = format!("are {}, a run can have {MAX_STAGES} at most", self.stages.len());
        need(self.stages.len() <= MAX_STAGES, "stages", &too_many)?;
        for (i, stage) in self.stages.iter().enumerate() {
            let place = |(key, problem): Problem| (format!("stages[{i}].{key}"), problem);
            stage.check(&self.workers, self.decoding.beams).map_err(place)?;
            stage.check_against(self).map_err(place)?;
            let repeated = self.stages[..i].iter().any(|other| other.name == stage.name);
            need(!repeated, &format!("stages[{i}].name"), "is the name of an earlier stage")?;
        }
        self.check_factors()?;
        self.check_meaning()
    }

    /// Checks that all stages that train LoRA factors train the same ones: a run has them from its beginning.
    fn check_factors(&self) -> Result<(), Problem> {
        let stages = self.stages.iter().enumerate();
        let mut trained = stages.filter_map(|(i, stage)| match &stage.contrastive.trainable {
            Trainable::Lora(lora) => Some((i, &stage.name, lora)),
            Trainable::All | Trainable::Projections => None,
        });
        let Some((_, first, factors)) = trained.next() else { return Ok(()) };
        match trained.find(|(_, _, other)| *other != factors) {
            None => Ok(()),
            Some((i, ..)) => {
                let problem = format!("differs from that of stage {first}: the evaluator has one set of LoRA factors");
                Err((format!("stages[{i}].contrastive.trainable.lora"), problem))
            }
        }
    }

    /// Checks that a captioner with so many positions, such as one from `captioner.weights`, can be
    /// trained and searched as the run wants.
    ///
    /// # Errors
    /// Names the key that is too large.
    pub fn check_positions(&self, positions: usize) -> Result<(), String> {
        self.check_lengths(positions).map_err(|(key, problem)| format!("{key} {problem}"))
    }

    fn check_lengths(&self, positions: usize) -> Result<(), Problem> {
        let learns_targets = self.stages.iter().any(|stage| stage.objective == Objective::CrossEntropy);
        let target = learns_targets.then_some(("captioner.max_target_length", self.captioner.max_target_length));
        for (key, length) in [("decoding.max_length", self.decoding.max_length)].into_iter().chain(target) {
            let problem = format!("is {length}, the captioner has {positions} positions");
            need(length as usize <= positions, key, &problem)?;
        }
        Ok(())
    }
}

impl Stage {
    fn check(&self, workers: &Workers, beams: u32) -> Result<(), Problem> {
        need(!self.name.is_empty() && file_name(&self.name), "name", "must be letters, digits, `-`, `_` or `.`")?;
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
        let contrastive = self.objective == Objective::Contrastive;
        need(!contrastive || self.micro_batch.is_none(), "micro_batch", "cannot split a contrastive batch")?;
        need(self.objective != Objective::Dico || beams >= 2, "objective", "dico needs decoding.beams of at least 2")?;
        need(positive(self.dico.beta), "dico.beta", "must be above 0")?;
        need(not_negative(self.dico.tau), "dico.tau", "must be 0 or above")?;
        let alone = self.objective == Objective::Scst && self.scst.baseline == Baseline::Mean && beams < 2;
        need(!alone, "scst.baseline", "`mean` of a single candidate is its own reward: raise decoding.beams")?;
        need(not_negative(self.contrastive.generated_images), "contrastive.generated_images", "must be 0 or above")?;
        need(
            not_negative(self.contrastive.generated_captions),
            "contrastive.generated_captions",
            "must be 0 or above",
        )?;
        if let Trainable::Lora(lora) = &self.contrastive.trainable {
            let key = |name: &str| format!("contrastive.trainable.lora.{name}");
            let range = format!("must be in 1..={MAX_LORA_RANK}");
            need((1..=MAX_LORA_RANK).contains(&lora.rank), &key("rank"), &range)?;
            need(positive(lora.alpha), &key("alpha"), "must be above 0")?;
            need(!lora.targets.is_empty(), &key("targets"), "must name at least one target")?;
        }
        need(self.patience != Some(0), "patience", "must be at least 1")?;
        need(self.patience.is_none() || self.metric.is_some(), "patience", "needs `metric`, to tell what is better")?;
        let counted = self.patience.is_none() || self.evaluate_every.is_some();
        need(counted, "patience", "needs `evaluate_every`: it counts evaluations")?;
        let of_another = |objective, is_default: bool| self.objective == objective || is_default;
        let plain = self.contrastive == Contrastive::default();
        need(of_another(Objective::Contrastive, plain), "contrastive", "is for `objective: contrastive` only")?;
        need(of_another(Objective::Scst, self.scst == Scst::default()), "scst", "is for `objective: scst` only")?;
        need(of_another(Objective::Dico, self.dico == Dico::default()), "dico", "is for `objective: dico` only")?;
        let optimizer = &self.optimizer;
        need(positive(optimizer.learning_rate), "optimizer.learning_rate", "must be above 0")?;
        let decay = |beta: &f64| (0.0..1.0).contains(beta);
        need(optimizer.betas.iter().all(decay), "optimizer.betas", "must be in 0..1")?;
        need(positive(optimizer.epsilon), "optimizer.epsilon", "must be above 0")?;
        need(not_negative(optimizer.weight_decay), "optimizer.weight_decay", "must be 0 or above")?;
        need(optimizer.clip_norm.is_none_or(positive), "optimizer.clip_norm", "must be above 0")?;
        need((0.0..=1.0).contains(&self.schedule.warmup), "schedule.warmup", "must be a fraction in 0..=1")
    }

    /// Checks what the stage needs of the rest of the run.
    fn check_against(&self, run: &RunFile) -> Result<(), Problem> {
        let RunFile { data, .. } = run;
        let scores = run.scores();
        if let Some(metric) = &self.metric {
            let best = scores.iter().filter(|(_, better)| *better == Better::Higher);
            let best: Vec<&str> = best.map(|(name, _)| name.as_str()).collect();
            need(best.contains(&metric.as_str()), "metric", &unknown("metric", metric, &best))?;
        }
        let mut watched: Vec<&str> = self.statistics().collect();
        watched.extend(scores.iter().map(|(name, _)| name.as_str()));
        for (i, rule) in self.guard.iter().enumerate() {
            rule.check(&watched).map_err(|(key, problem)| (format!("guard[{i}].{key}"), problem))?;
        }
        let Contrastive { generated_images, generated_captions, .. } = self.contrastive;
        let positives = data.positives.as_ref();
        let images = positives.is_some_and(|positives| positives.images.is_some());
        let captions = positives.is_some_and(|positives| positives.captions.is_some());
        need(images || generated_images == 0.0, "contrastive.generated_images", "needs data.positives.images")?;
        need(captions || generated_captions == 0.0, "contrastive.generated_captions", "needs data.positives.captions")?;
        let Some((key, rewards)) = self.rewards() else { return Ok(()) };
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
    /// `watched` is what there is to watch.
    fn check(&self, watched: &[&str]) -> Result<(), Problem> {
        need(watched.contains(&self.metric.as_str()), "metric", &unknown("metric", &self.metric, watched))?;
        need(self.above.is_some() != self.below.is_some(), "metric", "needs either `above` or `below`")?;
        need(self.above.is_none_or(f64::is_finite), "above", "must be finite")?;
        need(self.below.is_none_or(f64::is_finite), "below", "must be finite")?;
        need(self.for_ >= 1, "for", "must be at least 1")
    }
}

impl Stage {
    /// The statistics that its steps report.
    fn statistics(&self) -> impl Iterator<Item = &'static str> {
        let of_preferences = |name: &str| [names::IMPLICIT_ACCURACY, names::GAMMA_ENTROPY].contains(&name);
        let objective = self.objective;
        names::ALL.into_iter().filter(move |name| match objective {
            Objective::Dico => true,
            Objective::Scst => !of_preferences(name),
            Objective::Contrastive | Objective::CrossEntropy => false,
        })
    }
}

pub(super) fn need(holds: bool, key: &str, problem: &str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err((key.to_owned(), problem.to_owned())) }
}

fn not_negative(value: f64) -> bool {
    value >= 0.0 && value.is_finite()
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const RUN: &str = "
name: test
output: /nowhere
workers: { min: 1, max: 2 }
data: { karpathy: { annotations: annotations.json, images: images } }
captioner: { preset: tiny }
evaluator: { preset: tiny }
stages:
  - { name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: scst, objective: scst, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
  - { name: dico, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

    /// What is wrong with the run where `key: value` is added to stage `stage`.
    fn problem(stage: &str, addition: &str) -> String {
        let text = RUN.replace(&format!("name: {stage},"), &format!("name: {stage}, {addition},"));
        match RunFile::parse(Path::new("run.yaml"), &text) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_run_file() {
        let parse = |text: &str| RunFile::parse(Path::new("run.yaml"), text).map_err(|error| error.to_string());
        assert_eq!(parse(&format!("\u{feff}{}", RUN.trim_start())), parse(RUN));
        // Neither does it count in the column of what is wrong.
        assert_eq!(parse("\u{feff}nam: test"), parse("nam: test"));
    }

    #[test]
    fn workers_and_lengths_that_do_not_fit_are_named_with_their_numbers() {
        let problem = |from: &str, to: &str| match RunFile::parse(Path::new("run.yaml"), &RUN.replace(from, to)) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let found = problem("max: 2", "max: 5");
        assert!(found.contains("stages[0].batch: is 4, and workers.max is 5: every worker needs a sample"), "{found}");
        let found = problem("max: 2", "max: 100001");
        assert!(found.contains("workers.max: is 100001, a run can have 100000 workers at most"), "{found}");
        let target = |preset: &str, most: u32| {
            let captioner = format!("captioner: {{ preset: {preset}, max_target_length: {most} }}");
            let text = RUN.replace("captioner: { preset: tiny }", &captioner);
            RunFile::parse(Path::new("run.yaml"), &text).err().map_or_else(String::new, |error| error.to_string())
        };
        assert!(target("tiny", 2).contains("captioner.max_target_length: must be at least 3"));
        assert!(target("tiny", 78).contains("captioner.max_target_length: is 78, the captioner has 77 positions"));
        assert!(
            target("dico", 1025).contains("captioner.max_target_length: is 1025, the captioner has 1024 positions")
        );
        assert_eq!([target("tiny", 77), target("dico", 1024)], ["", ""]);
        let imported = RUN.replace("captioner: { preset: tiny }", "captioner: { weights: folder }");
        let imported = imported.replace("objective: cross_entropy", "objective: dico");
        let parsed = RunFile::parse(Path::new("run.yaml"), &imported).unwrap();
        // Of an imported captioner. Without a stage that learns targets their length does not
        // matter.
        assert_eq!((parsed.captioner.max_target_length, parsed.check_positions(30)), (77, Ok(())));
        let parsed = RunFile::parse(Path::new("run.yaml"), RUN).unwrap();
        let problem = "captioner.max_target_length is 77, the captioner has 40 positions";
        assert_eq!(parsed.check_positions(40), Err(problem.to_owned()));
        let problem = "decoding.max_length is 30, the captioner has 20 positions";
        assert_eq!(parsed.check_positions(20), Err(problem.to_owned()));
    }

    #[test]
    fn numbers_that_nobody_means_are_refused() {
        let problem = |from: &str, to: &str| match RunFile::parse(Path::new("run.yaml"), &RUN.replace(from, to)) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        let control = |setting: &str| problem("name: test", &format!("name: test\ncontrol: {{ {setting} }}"));
        for setting in ["heartbeat_timeout: 0.01", "heartbeat_timeout: 2592000", "stall_timeout: 0.5", "window: 10000"]
        {
            assert_eq!(control(setting), "", "{setting}");
        }
        for setting in ["heartbeat_timeout", "stall_timeout"] {
            for value in ["0", "0.001", "-1", "1.0e300", ".nan", ".inf"] {
                let found = control(&format!("{setting}: {value}"));
                assert!(found.contains(&format!("control.{setting}: must be from 0.01 to 2592000 seconds")), "{found}");
            }
        }
        assert!(control("window: 10001").contains("control.window: must be in 1..=10000"));
        let found = problem("steps: 9", "steps: 18446744073709551615");
        assert!(found.contains("stages[0].steps: is 18446744073709551615, a stage can have 1099511627776"), "{found}");
        let found = problem("batch: 4", "batch: 4294967295");
        assert!(found.contains("stages[0].batch: is 4294967295, a step can have 1048576 samples at most"), "{found}");
        let stage = RUN.lines().last().unwrap();
        let stages: String = (0..1_000)
            .map(|number| format!("{}\n", stage.replace("name: dico", &format!("name: d{number}"))))
            .collect();
        assert!(
            RunFile::parse(Path::new("run.yaml"), &format!("{RUN}{stages}"))
                .unwrap_err()
                .to_string()
                .contains("stages: are 1004")
        );
    }

    #[test]
    fn what_a_coordinator_sends_passes_the_same_checks() {
        let run = RunFile::parse(Path::new("run.yaml"), RUN).unwrap();
        let json = serde_json::to_string(&run).unwrap();
        assert_eq!(RunFile::from_json(&json), Ok(run));
        assert!(RunFile::from_json("").unwrap_err().contains("EOF"));
        let prefix = format!("preset: tiny, prefix: \"{}\"", "x".repeat(1 << 20));
        let long = RUN.replace("evaluator: { preset: tiny", &format!("evaluator: {{ {prefix}"));
        let error = RunFile::parse(Path::new("run.yaml"), &long).unwrap_err().to_string();
        assert!(error.contains("stages: make the run file") && error.contains("1048576 at most"), "{error}");
        assert!(RunFile::from_json("[]").is_err());
        let changed = |from: &str, to: &str| RunFile::from_json(&json.replace(from, to)).unwrap_err();
        assert_eq!(changed("\"steps\":9", "\"steps\":0"), "stages[0].steps: must be at least 1");
        assert_eq!(
            changed("\"name\":\"clip\"", "\"name\":\"../a\""),
            "stages[0].name: must be letters, digits, `-`, `_` or `.`"
        );
        assert!(changed("{", &" ".repeat(crate::MAX_JSON_BYTES)).contains("2097152 at most"));
    }

    #[test]
    fn a_run_has_one_set_of_lora_factors() {
        let stage = RUN.lines().find(|line| line.contains("name: clip")).unwrap();
        let with = |name: &str, trainable: &str| {
            let contrastive = format!("name: {name}, contrastive: {{ trainable: {trainable} }}");
            stage.replace("name: clip", &contrastive)
        };
        let run =
            |stages: &[String]| match RunFile::parse(Path::new("run.yaml"), &RUN.replace(stage, &stages.join("\n"))) {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            };
        let factors = "{ lora: { targets: [mlp, attention] } }";
        let same = "{ lora: { targets: [attention, mlp], rank: 4 } }";
        assert_eq!(run(&[with("a", factors), with("b", "all"), with("c", "projections"), with("d", same)]), "");
        for other in ["{ lora: { rank: 8 } }", "{ lora: { targets: [mlp] } }", "{ lora: { alpha: 2 } }"] {
            let found = run(&[with("a", factors), with("b", "all"), with("c", other)]);
            let expected = "stages[2].contrastive.trainable.lora: differs from that of stage a";
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert_eq!(problem("dico", "evaluate_first: true"), "");
        for (stage, addition, expected) in [
            ("dico", "metric: sider", "stages[3].metric: unknown metric `sider`: did you mean `cider`?"),
            ("dico", "metric: rep_4", "stages[3].metric: unknown metric `rep_4`"),
            ("dico", "patience: 3", "stages[3].patience: needs `metric`, to tell what is better"),
            ("dico", "patience: 3, metric: cider", "stages[3].patience: needs `evaluate_every`"),
            ("dico", "metric: ref_clip_s", "stages[3].metric: unknown metric `ref_clip_s`"),
            ("dico", "metric: spice", "stages[3].metric: unknown metric `spice`"),
            ("dico", "scst: { baseline: greedy }", "stages[3].scst: is for `objective: scst` only"),
            ("scst", "dico: { beta: 0.1 }", "stages[2].dico: is for `objective: dico` only"),
            ("scst", "guard: [{ metric: gamma_entropy, above: 1, action: warn }]", "unknown metric `gamma_entropy`"),
            ("clip", "guard: [{ metric: kl, above: 1, action: warn }]", "unknown metric `kl`"),
            ("dico", "guard: [{ metric: kl, below: .inf, action: warn }]", "stages[3].guard[0].below: must be finite"),
            ("dico", "patience: 0, metric: cider", "stages[3].patience: must be at least 1"),
            ("dico", "dico: { reward: {} }", "stages[3].dico.reward: needs at least one reward"),
            (
                "dico",
                "dico: { reward: { clip_s: 1 } }",
                "stages[3].dico.reward: there is no evaluator `clip_s`: the rewards are pac_s, cider",
            ),
            ("scst", "scst: { reward: { cider: .nan } }", "stages[2].scst.reward: needs finite weights"),
            ("scst", "scst: { reward: { missing_end: -1 } }", "stages[2].scst.reward: needs at least one reward"),
            (
                "scst",
                "scst: { reward: { cider: 0, missing_end: -1 } }",
                "stages[2].scst.reward: needs at least one reward",
            ),
            (
                "scst",
                "scst: { reward: { cider: 1, missing_end: 0.1 } }",
                "stages[2].scst.reward: `missing_end` is a penalty: give it a weight below 0",
            ),
            (
                "dico",
                "dico: { reward: { pac_s: 1, missing_end: 0 } }",
                "stages[3].dico.reward: `missing_end` is a penalty",
            ),
            (
                "dico",
                "dico: { reward: { pac_s: 1, missing_end: -.inf } }",
                "stages[3].dico.reward: needs finite weights",
            ),
            (
                "clip",
                "contrastive: { generated_images: 0.1 }",
                "stages[0].contrastive.generated_images: needs data.positives.images",
            ),
            (
                "dico",
                "guard: [{ metric: kl, action: warn }]",
                "stages[3].guard[0].metric: needs either `above` or `below`",
            ),
            (
                "dico",
                "guard: [{ metric: lk, above: 1, action: warn }]",
                "stages[3].guard[0].metric: unknown metric `lk`",
            ),
            (
                "dico",
                "guard: [{ metric: kl, above: 1, for: 0, action: warn }]",
                "stages[3].guard[0].for: must be at least 1",
            ),
            ("dico", "guard: [{ metric: kl, above: 1, action: sleep }]", "unknown value `sleep`"),
        ] {
            let problem = problem(stage, addition);
            assert!(problem.contains(expected), "{addition}: {problem}");
        }
        for trainable in ["all", "projections", "{ lora: {} }", "{ lora: { rank: 8, alpha: 16, targets: [mlp] } }"] {
            assert_eq!(problem("clip", &format!("contrastive: {{ trainable: {trainable} }}")), "");
        }
        for (lora, expected) in [
            ("rank: 0", "stages[0].contrastive.trainable.lora.rank: must be in 1..=256"),
            ("rank: 257", "trainable.lora.rank: must be in 1..=256"),
            ("alpha: 0", "trainable.lora.alpha: must be above 0"),
            ("alpha: .inf", "trainable.lora.alpha: must be above 0"),
            ("targets: []", "trainable.lora.targets: must name at least one target"),
            ("targets: [attn]", "unknown value `attn`: did you mean `attention`?"),
            ("ranks: 4", "unknown key `ranks`: did you mean `rank`?"),
        ] {
            let found = problem("clip", &format!("contrastive: {{ trainable: {{ lora: {{ {lora} }} }} }}"));
            assert!(found.contains(expected), "{lora}: {found}");
        }
        let found = problem("xe", "contrastive: { trainable: projections }");
        assert!(found.contains("stages[1].contrastive: is for `objective: contrastive` only"), "{found}");
        assert_eq!(problem("dico", "dico: { reward: { pac_s: 1, missing_end: -0.1 } }"), "");
        assert_eq!(problem("scst", "scst: { reward: { cider: 1, missing_end: -1 } }"), "");
        let good = "evaluate_every: 3, metric: cider, patience: 3, \
                    guard: [{ metric: kl, above: 0.5, for: 9, action: rollback }, { metric: rep_4, above: 0.9, action: pause }]";
        assert_eq!(problem("dico", good), "");
        assert_eq!(
            problem("scst", "scst: { reward: { cider: 1, pac_s: 0.5 }, baseline: greedy, candidates: samples }"),
            ""
        );
    }
}
