//! Every objective with real workers, and the ends of stages.

use std::path::{Path, PathBuf};

use journal::RecordedStep;
use test_support::{Coordinator, Workspace, error_line, read_tensors, run, run_to_completion, wait_for};

/// Writes a run file with these stages. The models start from a checkpoint if `start` names one.
fn run_file(workspace: &Workspace, name: &str, workers: u32, start: Option<&Path>, stages: &[&str]) -> PathBuf {
    let folder = workspace.path("").display().to_string();
    let start = start.map_or_else(|| "preset: tiny".to_owned(), |path| format!("weights: {}", path.display()));
    let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    let stages: String =
        stages.iter().map(|stage| format!("  - {{ {} }}\n", stage.replace("OPTIMIZER", optimizer))).collect();
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}{name}\nworkers: {{ min: {workers}, max: {workers} }}\n\
         data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n  \
         scenes: {folder}world/scenes.json\n  \
         positives: {{ images: {folder}world/positives/images, captions: {folder}world/positives/captions.json }}\n\
         vocabulary: corpus\nevaluator: {{ {start}, prefix: \"\" }}\ncaptioner: {{ {start}, dropout: 0.0 }}\n\
         decoding: {{ beams: 3, max_length: 12 }}\nstages:\n{stages}"
    );
    let path = workspace.path(&format!("{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn every_objective_trains_with_equal_parameters_on_all_ranks() {
    let workspace = Workspace::with_positives();
    let stages = [
        "name: pac, objective: { contrastive: { generated_images: 0.05, generated_captions: 0.1 } }, steps: 3, batch: 12, OPTIMIZER",
        "name: xe, objective: cross_entropy, steps: 2, batch: 12, OPTIMIZER",
        "name: scst-cider, objective: { scst: { reward: { cider: 1, pac_s: 0.5 } } }, steps: 2, batch: 6, OPTIMIZER",
        "name: scst-samples, objective: { scst: { baseline: greedy, candidates: samples } }, steps: 2, batch: 6, OPTIMIZER",
        "name: uniform, objective: { dico: { weights: uniform } }, steps: 2, batch: 6, OPTIMIZER",
        "name: worst, objective: { dico: { weights: worst, reward: { cider: 1 } } }, steps: 2, batch: 6, OPTIMIZER",
        "name: free, objective: { dico: { reference: false } }, steps: 2, batch: 6, OPTIMIZER",
        "name: dpo, objective: { dpo: { beta: 0.5, reward: { cider: 1, pac_s: 0.5 } } }, steps: 2, batch: 6, OPTIMIZER",
    ];
    let hashes = run_to_completion(&workspace, &run_file(&workspace, "run", 2, None, &stages), 2);
    assert_eq!(hashes[0], hashes[1]);
    let steps = workspace.steps("run");
    let summaries = |stage: u32, step: u64| {
        let is_wanted = |recorded: &&RecordedStep| (recorded.position.stage, recorded.position.step) == (stage, step);
        &steps.iter().find(is_wanted).unwrap().summaries
    };
    for stage in (2..).take(stages.len() - 2) {
        let summaries = summaries(stage, 2);
        assert_eq!(summaries["reward_chosen"].count, 6, "{summaries:?}");
        assert!(summaries["kl"].mean.is_some(), "{summaries:?}");
        assert_eq!(summaries.contains_key("implicit_accuracy"), stage >= 4, "{summaries:?}");
        assert_eq!(summaries.contains_key("gamma_entropy"), (4..7).contains(&stage), "{summaries:?}");
    }
    // At the start of a stage the reference equals the policy.
    let kl = summaries(2, 1)["kl"].max.unwrap();
    assert!(kl.abs() < 1e-4, "{kl}");
    // The weights of the two rejected candidates are uniform in one stage, and all the weight is
    // on one candidate in the other.
    let entropy = |stage| summaries(stage, 1)["gamma_entropy"].mean.unwrap();
    assert!((entropy(4) - 2.0_f64.ln()).abs() < 1e-5 && entropy(5).abs() < 1e-5);
}

#[test]
fn a_stage_that_only_deteriorates_ends_with_its_initial_state() {
    let workspace = Workspace::with_positives();
    let first = [
        "name: evaluator, objective: contrastive, steps: 2, batch: 12, OPTIMIZER",
        "name: xe, objective: cross_entropy, steps: 60, batch: 12, OPTIMIZER",
    ];
    run_to_completion(&workspace, &run_file(&workspace, "first", 1, None, &first), 1);
    let start = workspace.last_checkpoint("first");
    let deteriorating = "objective: { scst: { reward: { cider: 1 } } }, steps: 8, batch: 6, evaluate_first: true, \
                   evaluate_every: 2, metric: cider, optimizer: { learning_rate: 0.1 }";
    let (early_stopped, guarded) = (
        format!("name: early-stopped, patience: 2, {deteriorating}"),
        format!("name: guarded, guard: [{{ metric: bleu_1, below: 0.2, action: rollback }}], {deteriorating}"),
    );
    for (name, stage, cause) in [("early-stopped", &early_stopped, "early_stopping"), ("guarded", &guarded, "guard")] {
        run_to_completion(&workspace, &run_file(&workspace, name, 2, Some(&start), &[stage]), 2);
        // The last state of the stage is kept, besides the selected one.
        let (selected, last) =
            (workspace.path(name).join(format!("checkpoints/0-{name}-00000000")), workspace.last_checkpoint(name));
        assert!(last > selected, "{}", last.display());
        let [initial, selected] = [&start, &selected].map(|folder| read_tensors(&folder.join("captioner.safetensors")));
        assert_eq!(initial, selected);
        let ends = workspace.journal(name).stage_ends().unwrap();
        assert_eq!((ends.len(), ends[0].position.step, ends[0].cause.name()), (1, 0, cause), "{ends:?}");
    }
    assert_eq!(workspace.journal("early-stopped").guard_firings().unwrap().len(), 0);
    let fired = workspace.journal("guarded").guard_firings().unwrap();
    assert_eq!((fired[0].rule.metric.as_str(), fired[0].rule.action.name()), ("bleu_1", "rollback"), "{fired:?}");
    assert!(fired[0].position.step > 0, "the rule was already triggered at the start: {fired:?}");
}

#[test]
fn a_run_that_the_guard_paused_waits_until_it_is_resumed() {
    let workspace = Workspace::with_positives();
    let stages = [
        "name: xe, objective: cross_entropy, steps: 2, batch: 12, OPTIMIZER",
        "name: dico, objective: { dico: { reward: { cider: 1 } } }, steps: 30, batch: 6, \
         guard: [{ metric: caption_length, above: 0, action: pause }], OPTIMIZER",
    ];
    let coordinator = Coordinator::start(&workspace, &run_file(&workspace, "run", 1, None, &stages));
    let resume = || run("coordinator", &["resume", "--coordinator", &coordinator.url]);
    let error = error_line(&resume());
    assert!(error.contains("not paused"), "{error}");
    let worker = coordinator.start_worker(&workspace, 0);
    let status = wait_for("the pause", || Some(coordinator.status()).filter(|status| status["state"] == "paused"));
    assert!(status["reason"].as_str().unwrap().contains("caption_length"), "{status}");
    assert!(resume().status.success());
    assert!(worker.succeeds());
    assert!(coordinator.process.succeeds());
    let pauses = workspace.journal("run").pauses().unwrap();
    assert_eq!(pauses.iter().map(|pause| pause.is_paused).collect::<Vec<_>>(), [true, false]);
}
