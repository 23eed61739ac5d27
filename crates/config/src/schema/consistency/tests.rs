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
const CLIP: &str = "{ name: clip, objective: contrastive, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
const XE: &str = "{ name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
const DICO: &str = "{ name: dico, objective: dico, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";
const SCST: &str = "{ name: scst, objective: scst, steps: 9, batch: 4, optimizer: { learning_rate: 1.0e-3 } }";

fn run(head: &str, stages: &[String]) -> String {
    stages.iter().fold(head.to_owned(), |text, stage| format!("{text}  - {stage}\n"))
}

fn with(stage: &str, more: &str) -> String {
    stage.replace("steps: 9,", &format!("steps: 9, {more},"))
}

/// The stage with these settings of its objective.
fn with_settings(stage: &str, settings: &str) -> String {
    let (before, rest) = stage.split_once("objective: ").unwrap();
    let (name, after) = rest.split_once(',').unwrap();
    format!("{before}objective: {{ {name}: {settings} }},{after}")
}

/// The message with which the run file is refused; empty if it is accepted.
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
        (&[DICO][..], "run.yaml:9:30: stages[0].objective: `dico` fine-tunes the captioner, and nothing has trained"),
        (
            &[CLIP, SCST],
            "stages[1].objective: `scst` fine-tunes the captioner, and nothing has trained the captioner: put a stage with `objective: cross_entropy` before it, or set captioner.weights",
        ),
        (
            &[XE, DICO],
            "stages[1].objective.dico.reward: the reward `pac_s` comes from the evaluator, and nothing has trained the evaluator: put a stage with `objective: contrastive` before it, or set evaluator.weights",
        ),
        (&[XE, SCST, CLIP], "stages[1].objective.scst.reward: the reward `pac_s`"),
    ] {
        let found = problem(&stages(all));
        assert!(found.contains(expected), "{all:?}: {found}");
    }
    assert_eq!(problem(&stages(&[CLIP, XE, DICO, SCST])), "");
    // Weights take the place of a stage, and CIDEr-D needs no evaluator.
    let head = RUN.replace("captioner: { preset: tiny }", "captioner: { weights: folder }");
    let by_cider = with_settings(SCST, "{ reward: { cider: 1, pac_s: 0 } }");
    assert_eq!(problem(&run(&head, &[by_cider])), "");
    let head = head.replace("evaluator: { preset: tiny }", "evaluator: { weights: pac.pth }");
    assert_eq!(problem(&run(&head, &[DICO.to_owned()])), "");
}

#[test]
fn scores_of_untrained_evaluators_neither_select_nor_guard() {
    let metric = |name: &str| format!("evaluate_every: 3, metric: {name}");
    let guard = |name: &str| format!("guard: [{{ metric: {name}, below: 0.1, action: warn }}]");
    for name in ["ref_pac_s", "retrieval_r1"] {
        for setting in [metric(name), guard(name)] {
            let found = problem(&run(RUN, &[with(XE, &setting)]));
            assert!(found.contains(&format!("`{name}` comes from the evaluator, and nothing has trained")), "{found}");
            assert_eq!(problem(&run(RUN, &[CLIP.to_owned(), with(XE, &setting)])), "");
            assert_eq!(problem(&run(RUN, &[with(CLIP, &setting)])), "");
        }
    }
    for setting in [metric("cider"), guard("bleu_4")] {
        assert_eq!(problem(&run(RUN, &[with(XE, &setting)])), "");
        let found = problem(&run(RUN, &[with(CLIP, &setting)]));
        assert!(found.contains("score the reference captions"), "{found}");
    }
}

#[test]
fn a_vision_encoder_is_not_trained_after_the_captioner() {
    let stages = [XE.to_owned(), CLIP.to_owned()];
    let found = problem(&run(RUN, &stages));
    assert!(found.contains("stages[1].objective: `contrastive` changes the vision encoder that stage xe"), "{found}");
    let own = RUN.replace("captioner: { preset: tiny }", "captioner: { preset: tiny, vision_encoder: clip.pt }");
    assert_eq!(problem(&run(&own, &stages)), "");
    let trainable = |what: &str| with_settings(CLIP, &format!("{{ trainable: {what} }}"));
    assert_eq!(problem(&run(RUN, &[XE.to_owned(), trainable("projections")])), "");
    assert!(problem(&run(RUN, &[XE.to_owned(), trainable("{ lora: {} }")])).contains("changes the vision encoder"));
}

#[test]
fn rules_that_cannot_be_broken_are_refused() {
    let stages = |rule: &str| {
        run(RUN, &[CLIP.to_owned(), XE.to_owned(), with(DICO, &format!("guard: [{{ {rule}, action: warn }}]"))])
    };
    for (rule, expected) in [
        ("metric: incorrect_endings, above: 5", "above: `incorrect_endings` (share of captions) is never above 1.00"),
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
fn settings_without_or_with_an_unlikely_effect_are_warned_about_with_their_location() {
    let stages = |more: &str| run(RUN, &[CLIP.to_owned(), XE.to_owned(), with(DICO, more)]);
    for (more, expected) in [
        (
            "evaluate_every: 10",
            "stages[2].evaluate_every: is 10, and the stage has 9 steps: only the last step is evaluated",
        ),
        ("checkpoint_every: 10", "stages[2].checkpoint_every: is 10, and the stage has 9 steps: only the last"),
        ("metric: cider", "stages[2].metric: there is only one evaluation"),
        ("metric: cider, evaluate_every: 4, patience: 3", "stages[2].patience: is 3, and the stage has 3 evaluations"),
        ("micro_batch: 5", "stages[2].micro_batch: is above the batch of 4"),
        ("schedule: { warmup: 0.01 }", "stages[2].schedule.warmup: is a fraction: 0.01 of 9 steps is less than one"),
        ("schedule: { warmup: 1 }", "stages[2].schedule.warmup: is a fraction: 1 means"),
        ("schedule: { warmup_from_zero: true }", "stages[2].schedule.warmup_from_zero: has no effect: `warmup` is 0"),
        ("guard: [{ metric: caption_length, above: -1, action: warn }]", "guard[0].above: `caption_length` is always"),
        ("guard: [{ metric: rep_4, above: 1, for: 2, action: warn }]", "guard[0].for: is 2, and the stage has 1 eval"),
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
        let stage = with_settings(CLIP, &format!("{{ trainable: {trainable} }}"));
        let alone = warnings(&run(RUN, std::slice::from_ref(&stage)));
        assert!(
            alone.len() == 1
                && alone[0].contains("stages[0].objective.contrastive.trainable: trains a part of an evaluator"),
            "{alone:?}"
        );
        let second = stage.replace("name: clip", "name: part");
        assert_eq!(warnings(&run(RUN, &[CLIP.to_owned(), second])), Vec::<String>::new());
    }
    let head = RUN.replace("captioner: { preset: tiny }", "captioner: { weights: folder, projection_init: uniform }");
    let trained = [CLIP.to_owned(), DICO.to_owned()];
    let found = warnings(&run(&head, &trained));
    assert!(
        found.len() == 1 && found[0].contains("captioner.projection_init: has no effect: the projection comes"),
        "{found:?}"
    );
    let dropout = |probability: &str| {
        RUN.replace("captioner: { preset: tiny }", &format!("captioner: {{ preset: tiny, dropout: {probability} }}"))
            .replace("stages:", "decoding: { candidate_dropout: true }\nstages:")
    };
    for (head, stages, expected) in [
        (dropout("0"), &[CLIP, XE, DICO][..], "has no effect: captioner.dropout is 0"),
        (dropout("0.1"), &[CLIP, XE], "has no effect: no stage generates candidates"),
    ] {
        let found = warnings(&run(&head, &stages.iter().map(|&stage| stage.to_owned()).collect::<Vec<_>>()));
        assert!(found.len() == 1 && found[0].contains(&format!("decoding.candidate_dropout: {expected}")), "{found:?}");
    }
    let all = [CLIP, XE, SCST].map(str::to_owned);
    assert_eq!(warnings(&run(&dropout("0.1"), &all)), Vec::<String>::new());
    let tars = RUN.replace(
        "karpathy: { annotations: annotations.json, images: images }",
        "webdataset: { train: a.tar, validation: a.tar }, positives: { images: more }",
    );
    let found = warnings(&run(&tars, &[CLIP.to_owned()]));
    assert!(found.len() == 2 && found[0].contains("data.webdataset.validation: is the training split"), "{found:?}");
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
