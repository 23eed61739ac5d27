//! Whether and why a run needs captions. Fine-tuning with an evaluator's score of image and caption
//! needs none.

use config::{Objective, Reward, RunFile, Stage};

use crate::Split;

/// Scores that compare captions with references. Those of evaluators begin with `ref_`.
const AGAINST_REFERENCES: [&str; 8] = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "meteor", "rouge_l", "cider", "spice"];

/// Why a run needs the captions of `split`; none if it does not.
#[must_use]
pub fn reason(run: &RunFile, split: Split) -> Option<String> {
    match split {
        Split::Train => run.stages.iter().find_map(trains_on_captions),
        Split::Validation => run.stages.iter().find_map(is_evaluated_by_references),
        Split::Test => None,
    }
}

fn trains_on_captions(stage: &Stage) -> Option<String> {
    let Stage { name, objective, .. } = stage;
    let rewards = match objective {
        Objective::Contrastive | Objective::CrossEntropy => {
            return Some(format!("stage `{name}` ({}) trains on them", objective.name()));
        }
        Objective::Scst => &stage.scst.reward,
        Objective::Dico => &stage.dico.reward,
    };
    let problem = || format!("stage `{name}` rewards `cider`, which compares candidates with them");
    rewards.contains_key(&Reward::Cider).then(problem)
}

fn is_evaluated_by_references(stage: &Stage) -> Option<String> {
    let Stage { name, objective, metric, guard, .. } = stage;
    if *objective == Objective::Contrastive {
        return Some(format!("stage `{name}` ({}) is evaluated on them", objective.name()));
    }
    let mut metrics = metric.iter().chain(guard.iter().map(|rule| &rule.metric));
    let compares = |metric: &&String| metric.starts_with("ref_") || AGAINST_REFERENCES.contains(&metric.as_str());
    let metric = metrics.find(compares)?;
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

    fn reasons(from: &str, to: &str) -> [String; 2] {
        assert!(RUN.contains(from));
        let run = RunFile::parse(Path::new("run.yaml"), &RUN.replace(from, to)).unwrap();
        assert_eq!(reason(&run, Split::Test), None);
        [Split::Train, Split::Validation].map(|split| reason(&run, split).unwrap_or_default())
    }

    #[test]
    fn fine_tuning_on_the_evaluator_alone_needs_no_captions() {
        for tune in [
            "dico",
            "scst",
            "dico, metric: pac_s",
            "dico, metric: retrieval_r1, guard: [{ metric: kl, above: 1, action: warn }]",
            "scst, scst: { reward: { pac_s: 1, missing_end: -0.1 } }",
        ] {
            assert_eq!(reasons("objective: dico", &format!("objective: {tune}")), ["", ""], "{tune}");
        }
    }

    #[test]
    fn what_captions_are_needed_for_is_named_with_its_stage() {
        let of = |tune: &str| reasons("objective: dico", &format!("objective: {tune}"));
        assert_eq!(of("cross_entropy"), ["stage `tune` (cross_entropy) trains on them", ""]);
        assert_eq!(
            of("contrastive"),
            ["stage `tune` (contrastive) trains on them", "stage `tune` (contrastive) is evaluated on them"]
        );
        let cider = "stage `tune` rewards `cider`, which compares candidates with them";
        assert_eq!(of("dico, dico: { reward: { cider: 1 } }"), [cider, ""]);
        assert_eq!(of("scst, scst: { reward: { cider: 1, pac_s: 1 } }"), [cider, ""]);
        let watches = |metric: &str| format!("stage `tune` watches `{metric}`, which compares with them");
        assert_eq!(of("dico, metric: ref_pac_s"), [String::new(), watches("ref_pac_s")]);
        assert_eq!(of("dico, guard: [{ metric: cider, below: 1, action: warn }]"), [String::new(), watches("cider")]);
    }

    #[test]
    fn metrics_against_references_are_scores_of_evaluations() {
        let known = |name: &&str| statistics::names::EVALUATION.iter().any(|(known, _)| known == name);
        assert!(AGAINST_REFERENCES.iter().all(known));
    }
}
