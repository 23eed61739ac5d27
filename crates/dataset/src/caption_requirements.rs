//! Whether and why a run needs reference captions: because a stage trains on them, is evaluated on
//! them, rewards a comparison with them, or watches a metric that compares with them.

use config::{RunFile, Stage};

use crate::Split;

/// Metrics that compare captions with references, without evaluator scores. The names of evaluator
/// scores that compare with references begin with `ref_`.
const REFERENCE_METRICS: [&str; 8] = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice"];

/// The reason why a run needs the captions of `split`; none if it does not need them, as those of
/// the test split.
#[must_use]
pub fn reason(run: &RunFile, split: Split) -> Option<String> {
    match split {
        Split::Train => run.stages.iter().find_map(training_reason),
        Split::Validation => run.stages.iter().find_map(evaluation_reason),
        Split::Test => None,
    }
}

fn training_reason(stage: &Stage) -> Option<String> {
    let Stage { name, objective, .. } = stage;
    if !objective.is_rewarded() {
        return Some(format!("stage `{name}` ({}) trains on them", objective.name()));
    }
    let reason = || format!("stage `{name}` rewards `cider`, which compares candidates with them");
    objective.has_cider_reward().then(reason)
}

fn evaluation_reason(stage: &Stage) -> Option<String> {
    let Stage { name, objective, metric, guard, .. } = stage;
    if objective.trains_evaluator() {
        return Some(format!("stage `{name}` ({}) is evaluated on them", objective.name()));
    }
    let mut metrics = metric.iter().chain(guard.iter().map(|rule| &rule.metric));
    let needs_references =
        |metric: &&String| metric.starts_with("ref_") || REFERENCE_METRICS.contains(&metric.as_str());
    let metric = metrics.find(needs_references)?;
    Some(format!("stage `{name}` watches `{metric}`, which compares with them"))
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
captioner: { weights: captioner }
evaluator: { weights: pac.pth }
stages:
  - { name: tune, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }
";

    /// The reasons for the training and the validation split when `from` is replaced by `to` in
    /// `RUN`.
    fn reasons(from: &str, to: &str) -> [String; 2] {
        assert!(RUN.contains(from));
        let run = RunFile::parse(Path::new("run.yaml"), &RUN.replace(from, to)).unwrap();
        assert_eq!(reason(&run, Split::Test), None);
        [Split::Train, Split::Validation].map(|split| reason(&run, split).unwrap_or_default())
    }

    #[test]
    fn rewards_without_references_need_no_captions() {
        for tune in [
            "dico",
            "scst",
            "dico, metric: pac_s",
            "dico, metric: retrieval_r1, guard: [{ metric: kl, above: 1, action: warn }]",
            "{ scst: { reward: { pac_s: 1, missing_end: -0.1 } } }",
        ] {
            assert_eq!(reasons("objective: dico", &format!("objective: {tune}")), ["", ""], "{tune}");
        }
    }

    #[test]
    fn a_reason_names_the_stage_and_its_use_of_captions() {
        let reasons_for = |tune: &str| reasons("objective: dico", &format!("objective: {tune}"));
        assert_eq!(reasons_for("cross_entropy"), ["stage `tune` (cross_entropy) trains on them", ""]);
        assert_eq!(
            reasons_for("contrastive"),
            ["stage `tune` (contrastive) trains on them", "stage `tune` (contrastive) is evaluated on them"]
        );
        let cider = "stage `tune` rewards `cider`, which compares candidates with them";
        assert_eq!(reasons_for("{ dico: { reward: { cider: 1 } } }"), [cider, ""]);
        assert_eq!(reasons_for("{ scst: { reward: { cider: 1, pac_s: 1 } } }"), [cider, ""]);
        let watches = |metric: &str| format!("stage `tune` watches `{metric}`, which compares with them");
        assert_eq!(reasons_for("dico, metric: ref_pac_s"), [String::new(), watches("ref_pac_s")]);
        assert_eq!(
            reasons_for("dico, guard: [{ metric: cider, below: 1, action: warn }]"),
            [String::new(), watches("cider")]
        );
    }

    #[test]
    fn reference_metrics_are_names_of_evaluation_metrics() {
        let is_evaluated = |name: &&str| metric_catalogue::EVALUATION_METRICS.contains(name);
        assert!(REFERENCE_METRICS.iter().all(is_evaluated));
    }
}
