//! The evaluators of a run by name, and the names of the scores that they give.

use std::collections::HashSet;

use metric_catalogue::{Direction, EVALUATION_METRICS, Metric, RETRIEVAL_METRICS, TRAINING_METRICS, metric};

use super::check::{Problem, need};
use super::{Evaluator, EvaluatorScore, Reward, RunFile};

/// Maximal number of evaluators in a run.
const MAX_EVALUATORS: usize = 8;
/// The prefix of the name of a metric that also uses the reference captions.
const REFERENCE_PREFIX: &str = "ref_";

/// An evaluator of a run.
#[derive(Clone, Copy, Debug)]
pub struct NamedEvaluator<'a> {
    /// Its name in rewards and metrics.
    pub name: &'a str,
    /// Its settings.
    pub settings: &'a Evaluator,
    /// Whether the names of its retrieval metrics have no prefix: in a run file, that of the one
    /// under `evaluator`.
    is_unprefixed: bool,
}

impl<'a> NamedEvaluator<'a> {
    /// An evaluator with this name, as the run file has them under `evaluators`.
    #[must_use]
    pub fn named(name: &'a str, settings: &'a Evaluator) -> Self {
        Self { name, settings, is_unprefixed: false }
    }

    /// The same evaluator, with names of retrieval metrics that have no prefix: the one under
    /// `evaluator`, or the only one of a command.
    #[must_use]
    pub fn unprefixed(self) -> Self {
        Self { is_unprefixed: true, ..self }
    }

    /// The score that its cosines are converted to.
    #[must_use]
    pub fn score(&self) -> EvaluatorScore {
        self.settings.score.or_else(|| EvaluatorScore::of_name(self.name)).unwrap_or_default()
    }

    /// The metric of a caption against its image: the evaluator's name.
    #[must_use]
    pub fn metric(&self) -> &'a str {
        self.name
    }

    /// The metric that also uses the references.
    #[must_use]
    pub fn reference_metric(&self) -> String {
        format!("{REFERENCE_PREFIX}{}", self.name)
    }

    /// The prefix of the names of its retrieval metrics: empty for `evaluator`, `NAME_` for one of
    /// `evaluators`.
    #[must_use]
    pub fn retrieval_prefix(&self) -> String {
        if self.is_unprefixed { String::new() } else { format!("{}_", self.name) }
    }

    /// The key of the run file that has its settings.
    #[must_use]
    pub fn key(&self) -> String {
        if self.is_unprefixed { "evaluator".to_owned() } else { format!("evaluators.{}", self.name) }
    }

    /// The names of its metrics that workers compute image by image.
    fn own_metrics(&self) -> [String; 2] {
        [self.metric().to_owned(), self.reference_metric()]
    }

    fn retrieval_metrics(&self) -> impl Iterator<Item = String> {
        let prefix = self.retrieval_prefix();
        RETRIEVAL_METRICS.iter().map(move |name| format!("{prefix}{name}"))
    }

    /// The name under which the catalogue has the metric `name`, if that is one of this
    /// evaluator's.
    fn catalogue_name(&self, name: &str) -> Option<&'static str> {
        let score = self.score();
        if name == self.metric() {
            return Some(score.name());
        }
        if name.strip_prefix(REFERENCE_PREFIX) == Some(self.name) {
            return Some(score.reference_name());
        }
        let rest = name.strip_prefix(&self.retrieval_prefix())?;
        RETRIEVAL_METRICS.into_iter().find(|known| *known == rest)
    }
}

impl EvaluatorScore {
    /// The score whose name `name`, the name of an evaluator, begins with.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        [Self::PacS, Self::ClipS].into_iter().find(|score| name.starts_with(score.name()))
    }
}

impl RunFile {
    /// All evaluators. The first is the primary one (see [`RunFile::primary_evaluator`]):
    /// `evaluator`, or else the one of `evaluators` with `preset`, or else the first by name.
    #[must_use]
    pub fn named_evaluators(&self) -> Vec<NamedEvaluator<'_>> {
        let unprefixed = self.evaluator.as_ref().map(|settings| {
            let name = settings.score.unwrap_or_default().name();
            NamedEvaluator::named(name, settings).unprefixed()
        });
        let mut all: Vec<NamedEvaluator<'_>> = unprefixed.into_iter().collect();
        let by_name = self.evaluators.iter();
        all.extend(by_name.map(|(name, settings)| NamedEvaluator::named(name, settings)));
        if self.evaluator.is_none() {
            // Stable: the others stay in the order of their names.
            all.sort_by_key(|evaluator| evaluator.settings.preset.is_none());
        }
        all
    }

    /// The evaluator of this name.
    #[must_use]
    pub fn named_evaluator(&self, name: &str) -> Option<NamedEvaluator<'_>> {
        self.named_evaluators().into_iter().find(|evaluator| evaluator.name == name)
    }

    /// The primary evaluator: `contrastive` stages train it, and a captioner without a vision
    /// encoder of its own uses that of the primary evaluator.
    ///
    /// # Panics
    /// There is none: a run file that was parsed has one.
    #[must_use]
    pub fn primary_evaluator(&self) -> NamedEvaluator<'_> {
        self.named_evaluators().into_iter().next().expect("a run file without an evaluator is refused")
    }

    /// The settings of the primary evaluator, to change them.
    ///
    /// # Panics
    /// As for [`RunFile::primary_evaluator`].
    pub fn primary_evaluator_mut(&mut self) -> &mut Evaluator {
        let name = self.primary_evaluator().name.to_owned();
        let unprefixed = self.evaluator.as_mut();
        unprefixed.or_else(|| self.evaluators.get_mut(&name)).expect("the primary evaluator is one of them")
    }

    /// Sets the score of each evaluator that has none to its default, so that a run file that
    /// leaves the default out is equal to one that contains it.
    pub(crate) fn complete_scores(&mut self) {
        if let Some(evaluator) = &mut self.evaluator {
            evaluator.score.get_or_insert_default();
        }
        for (name, evaluator) in &mut self.evaluators {
            evaluator.score = evaluator.score.or_else(|| EvaluatorScore::of_name(name));
        }
    }

    /// Whether some stage trains the primary evaluator.
    #[must_use]
    pub fn trains_evaluator(&self) -> bool {
        self.stages.iter().any(|stage| stage.objective.trains_evaluator())
    }

    /// The scores that evaluations report, with their directions, in the order of
    /// `docs/run-file.md`.
    #[must_use]
    pub fn scores(&self) -> Vec<(String, Direction)> {
        let (evaluators, scenes) = (self.named_evaluators(), self.data.scenes.is_some());
        let spice = self.scoring.spice_jar.is_some();
        let mut scores = Vec::new();
        scores.extend(
            evaluators.iter().flat_map(NamedEvaluator::own_metrics).map(|name| (name, Direction::HigherIsBetter)),
        );
        for name in EVALUATION_METRICS {
            match name {
                "pac_s" | "ref_pac_s" | "clip_s" | "ref_clip_s" => {}
                "grammatical" | "truthful" | "details" if !scenes => {}
                "spice" if !spice => {}
                name if RETRIEVAL_METRICS.contains(&name) => {
                    // Those of all evaluators are listed together.
                    if name == RETRIEVAL_METRICS[0] {
                        let all = evaluators.iter().flat_map(NamedEvaluator::retrieval_metrics);
                        scores.extend(all.map(|name| (name, Direction::HigherIsBetter)));
                    }
                }
                name => scores.push((name.to_owned(), metric_catalogue::direction(name))),
            }
        }
        scores
    }

    /// The scores that workers report for each image. The coordinator cannot compute these scores:
    /// they need the models or the scenes.
    #[must_use]
    pub fn scores_by_workers(&self) -> Vec<String> {
        let own = self.named_evaluators();
        let own = own.iter().flat_map(NamedEvaluator::own_metrics);
        let scenes = self.data.scenes.iter().flat_map(|_| ["grammatical", "truthful", "details"]);
        own.chain(scenes.map(str::to_owned)).collect()
    }

    /// The catalogue's entry of a metric, and the evaluator that the metric comes from, if any;
    /// none for an unknown name.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<(&'static Metric, Option<NamedEvaluator<'_>>)> {
        let found = self.named_evaluators().into_iter().find_map(|evaluator| {
            let name = evaluator.catalogue_name(name)?;
            Some((name, evaluator))
        });
        match found {
            Some((name, evaluator)) => Some((metric(name)?, Some(evaluator))),
            None => Some((metric(name)?, None)),
        }
    }

    pub(super) fn check_evaluators(&self) -> Result<(), Problem> {
        let all = self.named_evaluators();
        need(!all.is_empty(), "evaluator", "is missing: give `evaluator` or `evaluators`")?;
        let too_many = format!("are {}, a run can have {MAX_EVALUATORS} at most", all.len());
        need(all.len() <= MAX_EVALUATORS, "evaluators", &too_many)?;
        let mut known: HashSet<String> = TRAINING_METRICS.into_iter().map(str::to_owned).collect();
        let by_evaluator = |name: &str| EvaluatorScore::of_name(name.trim_start_matches(REFERENCE_PREFIX)).is_some();
        let fixed = EVALUATION_METRICS.into_iter().filter(|name| !by_evaluator(name));
        known.extend(fixed.filter(|name| !RETRIEVAL_METRICS.contains(name)).map(str::to_owned));
        known.extend([Reward::Cider, Reward::MissingEnd].map(|reward| reward.name().to_owned()));
        for (i, evaluator) in all.iter().enumerate() {
            let key = evaluator.key();
            let NamedEvaluator { name, settings, .. } = evaluator;
            let is_valid = name.len() <= 32
                && name.starts_with(|first: char| first.is_ascii_lowercase())
                && !name.starts_with(REFERENCE_PREFIX)
                && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
            need(
                is_valid,
                &key,
                "must have a name of lower-case letters, digits and `_`, with a letter first and without `ref_`; 32 at most",
            )?;
            let names = evaluator.own_metrics().into_iter().chain(evaluator.retrieval_metrics());
            for name in names {
                let taken = format!("its score `{name}` has the name of another metric: rename the evaluator");
                need(known.insert(name), &key, &taken)?;
            }
            let score = settings.score.or_else(|| EvaluatorScore::of_name(name));
            let no_score = "has no score: set `score`, or begin its name with pac_s or clip_s";
            need(evaluator.is_unprefixed || score.is_some(), &key, no_score)?;
            let Evaluator { preset, weights, clip, .. } = settings;
            need(preset.is_some() != weights.is_some(), &key, "needs either `preset` or `weights`")?;
            let without_weights = "describes weights, and there are none";
            need(weights.is_some() || clip.is_empty(), &format!("{key}.clip"), without_weights)?;
            let untrained = "has no weights, and stages train one evaluator only";
            need(i == 0 || weights.is_some(), &key, untrained)?;
        }
        let is_ambiguous = self.evaluator.is_none() && all.len() > 1 && all[0].settings.preset.is_none();
        let problem = "has several evaluators with weights, and `contrastive` stages train one: give that one under `evaluator` \
                       instead";
        need(!is_ambiguous || !self.trains_evaluator(), "evaluators", problem)?;
        let problem = "has several evaluators with weights, and the captioner has no vision encoder of its own: set captioner.vision_encoder";
        need(!is_ambiguous || !self.shares_vision_encoder(), "evaluators", problem)
    }
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
captioner: { weights: folder }
EVALUATORS
stages:
  - { name: dico, objective: { dico: { reward: REWARD } }, metric: METRIC, evaluate_every: 3, steps: 9, batch: 4,
      optimizer: { learning_rate: 1.0e-3 } }
";

    fn parse(evaluators: &str, reward: &str, metric: &str) -> Result<RunFile, String> {
        let text = RUN.replace("EVALUATORS", evaluators).replace("REWARD", reward).replace("METRIC", metric);
        RunFile::parse(Path::new("run.yaml"), &text).map_err(|error| error.to_string())
    }

    const BOTH: &str = "evaluators: { pac_s: { weights: pac.pth }, clip_s: { weights: clip.pt } }";

    #[test]
    fn evaluators_are_known_by_name_in_rewards_and_metrics() {
        let run = parse(BOTH, "{ pac_s: 0.5, clip_s: 0.5 }", "clip_s_retrieval_r1").unwrap();
        let scores = run.named_evaluators();
        let scores: Vec<_> = scores.iter().map(|evaluator| (evaluator.name, evaluator.score())).collect();
        assert_eq!(scores, [("clip_s", EvaluatorScore::ClipS), ("pac_s", EvaluatorScore::PacS)]);
        let names: Vec<String> = run.scores().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..4], ["clip_s", "ref_clip_s", "pac_s", "ref_pac_s"]);
        for name in ["clip_s_retrieval_r1", "pac_s_retrieval_mrr", "cider", "rep_4"] {
            assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
        }
        assert!(!names.iter().any(|name| name == "retrieval_r1" || name == "spice" || name == "details"));

        let named = "evaluators: { other: { weights: a.pt, score: clip_s }, pac_s_large: { weights: b.pth } }";
        let run = parse(named, "{ other: 1, missing_end: -0.1 }", "ref_other").unwrap();
        let (metric, evaluator) = run.metric("ref_other").unwrap();
        assert_eq!((metric.name, evaluator.unwrap().name), ("ref_clip_s", "other"));
        let (metric, evaluator) = run.metric("pac_s_large_retrieval_r5").unwrap();
        assert_eq!((metric.name, evaluator.unwrap().name), ("retrieval_r5", "pac_s_large"));
        assert!(run.metric("cider").unwrap().1.is_none());
        assert_eq!(run.scores_by_workers(), ["other", "ref_other", "pac_s_large", "ref_pac_s_large"]);
    }

    #[test]
    fn retrieval_metrics_of_the_key_evaluator_have_no_prefix() {
        let run = parse("evaluator: { weights: pac.pth }", "{ pac_s: 1 }", "retrieval_r1").unwrap();
        let evaluator = run.primary_evaluator();
        assert_eq!(
            (evaluator.name, evaluator.score(), evaluator.key().as_str()),
            ("pac_s", EvaluatorScore::PacS, "evaluator")
        );
        let fixed = EVALUATION_METRICS;
        let absent = ["clip_s", "ref_clip_s", "spice", "grammatical", "truthful", "details"];
        let expected: Vec<&str> = fixed.into_iter().filter(|name| !absent.contains(name)).collect();
        assert_eq!(run.scores().iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), expected);
        // Further evaluators beside `evaluator`.
        let both = "evaluator: { weights: pac.pth }\nevaluators: { clip_s: { weights: clip.pt } }";
        let run = parse(both, "{ pac_s: 1 }", "clip_s_retrieval_r1").unwrap();
        assert_eq!(run.named_evaluators().iter().map(|one| one.name).collect::<Vec<_>>(), ["pac_s", "clip_s"]);
        assert!(run.metric("retrieval_r1").unwrap().1.is_some_and(|evaluator| evaluator.name == "pac_s"));
    }

    #[test]
    fn evaluators_with_ambiguous_names_or_roles_are_refused() {
        for (evaluators, reward, metric, expected) in [
            ("seed: 1", "{ pac_s: 1 }", "cider", "evaluator: is missing"),
            (
                "evaluator: { weights: a.pt }\nevaluators: { pac_s: { weights: b.pt } }",
                "{ pac_s: 1 }",
                "cider",
                "evaluators.pac_s: its score `pac_s` has the name of another",
            ),
            ("evaluators: { other: { weights: a.pt } }", "{ other: 1 }", "cider", "has no score: set `score`"),
            (
                "evaluators: { cider: { weights: a.pt, score: pac_s } }",
                "{ cider: 1 }",
                "cider",
                "`cider` has the name of",
            ),
            (
                "evaluators: { kl: { weights: a.pt, score: pac_s } }",
                "{ kl: 1 }",
                "cider",
                "`kl` has the name of another metric",
            ),
            (
                "evaluators: { PAC: { weights: a.pt, score: pac_s } }",
                "{ PAC: 1 }",
                "cider",
                "a name of lower-case letters",
            ),
            ("evaluators: { ref_pac: { weights: a.pt, score: pac_s } }", "{ ref_pac: 1 }", "cider", "without `ref_`"),
            (
                BOTH,
                "{ other: 1 }",
                "cider",
                "stages[0].objective.dico.reward: there is no evaluator `other`: the rewards are",
            ),
            (BOTH, "{ pac_s: 1 }", "retrieval_r1", "unknown metric `retrieval_r1`"),
            (
                "evaluators: { pac_s: { weights: a.pt }, clip_s: { preset: tiny }, clip_s_2: { preset: tiny } }",
                "{ pac_s: 1 }",
                "cider",
                "evaluators.clip_s_2: has no weights, and stages train one evaluator only",
            ),
            (
                "evaluators: { pac_s: {} }",
                "{ pac_s: 1 }",
                "cider",
                "evaluators.pac_s: needs either `preset` or `weights`",
            ),
        ] {
            let error = parse(evaluators, reward, metric).unwrap_err();
            assert!(error.contains(expected), "{evaluators}, {reward}: {error}");
        }
    }

    #[test]
    fn the_primary_evaluator_must_be_unambiguous() {
        let clip = "{ name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
        let with_stage = |evaluators: &str| {
            let text =
                RUN.replace("EVALUATORS", evaluators).replace("REWARD", "{ clip_s: 1 }").replace("METRIC", "cider");
            let text = text.replace("stages:", &format!("stages:\n  - {clip}"));
            RunFile::parse(Path::new("run.yaml"), &text).map_err(|error| error.to_string())
        };
        let error = with_stage(BOTH).unwrap_err();
        assert!(
            error.contains("evaluators: has several evaluators with weights, and `contrastive` stages train one"),
            "{error}"
        );
        let run = with_stage("evaluators: { clip_s: { weights: clip.pt }, pac_s: { preset: tiny } }").unwrap();
        assert_eq!(run.primary_evaluator().name, "pac_s");
        with_stage("evaluator: { weights: a.pth }\nevaluators: { clip_s: { weights: clip.pt } }").unwrap();

        let text = RUN.replace("EVALUATORS", BOTH).replace("{ weights: folder }", "{ preset: tiny }");
        let text = text.replace("REWARD", "{ clip_s: 1 }").replace("METRIC", "cider");
        let error = RunFile::parse(Path::new("run.yaml"), &text).unwrap_err().to_string();
        assert!(error.contains("set captioner.vision_encoder"), "{error}");
    }
}
