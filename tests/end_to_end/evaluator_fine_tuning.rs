//! Fine-tuning of the evaluator with real workers: stages that train only the last projections, as
//! PAC-S does, or LoRA factors, as PAC-S++ does; and `worker export-evaluator`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use test_support::{Coordinator, Workspace, error_line, read_tensors, run, run_to_completion, wait_for};

/// Writes a run file with five stages: the first trains all of the evaluator in `steps` steps, the
/// second LoRA factors, and the third the projections. The last two train the captioner.
fn run_file(workspace: &Workspace, name: &str, workers: u32, (vocabulary, steps): (&str, u32)) -> PathBuf {
    let folder = workspace.path("").display().to_string();
    let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    let lora = "{ lora: { rank: 3, alpha: 24 } }";
    let contrastive =
        |trainable: &str| format!("objective: {{ contrastive: {{ trainable: {trainable} }} }}, batch: 12");
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}{name}\nworkers: {{ min: {workers}, max: {workers} }}\n\
         data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n\
         vocabulary: {vocabulary}\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n\
         decoding: {{ beams: 3, max_length: 12 }}\ncheckpoints: {{ keep: 100 }}\ncontrol: {{ window: 1 }}\nstages:\n  \
         - {{ name: all, {}, steps: {steps}, {optimizer} }}\n  \
         - {{ name: lora, {}, steps: 12, checkpoint_every: 4, {optimizer} }}\n  \
         - {{ name: projections, {}, steps: 4, {optimizer} }}\n  \
         - {{ name: xe, objective: cross_entropy, steps: 2, batch: 12, {optimizer} }}\n  \
         - {{ name: dico, objective: dico, steps: 2, batch: 6, {optimizer} }}\n",
        contrastive("all"),
        contrastive(lora),
        contrastive("projections"),
    );
    let path = workspace.path(&format!("{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}

/// Vocabulary and steps of a run whose captions do not matter.
const SHORT_RUN: (&str, u32) = ("corpus", 4);

fn checkpoint_path(workspace: &Workspace, run: &str, name: &str) -> PathBuf {
    workspace.path(run).join("checkpoints").join(name)
}

fn evaluator_parameters(workspace: &Workspace, run: &str, checkpoint: &str) -> BTreeMap<String, Vec<f32>> {
    read_tensors(&checkpoint_path(workspace, run, checkpoint).join("evaluator.safetensors"))
}

/// The names of the parameters that differ between two states.
fn changed_parameters(before: &BTreeMap<String, Vec<f32>>, after: &BTreeMap<String, Vec<f32>>) -> Vec<String> {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    before.iter().filter(|(name, values)| bits(values) != bits(&after[*name])).map(|(name, _)| name.clone()).collect()
}

fn is_lora_factor(name: &str) -> bool {
    name.ends_with("lora_A") || name.ends_with("lora_B")
}

#[test]
fn a_stage_changes_only_its_trainable_parameters_and_two_workers_equal_one() {
    let workspace = Workspace::new();
    let one = run_to_completion(&workspace, &run_file(&workspace, "one", 1, SHORT_RUN), 1);
    let two = run_to_completion(&workspace, &run_file(&workspace, "two", 2, SHORT_RUN), 2);
    assert_eq!(two[0], two[1], "ranks differ");
    // Two workers sum in another order, so the bits differ. If they were equal, this would compare
    // a run with itself.
    assert_ne!(one[0], two[0]);
    let (one, two) = (workspace.parameters("one"), workspace.parameters("two"));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, values) in &one {
        for (a, b) in values.iter().zip(&two[name]) {
            assert!((a - b).abs() < 5e-5, "{name}: {a} and {b}");
        }
    }
    let states = ["0-all-00000004", "1-lora-00000012", "2-projections-00000004", "4-dico-00000002"];
    let [all, lora, projections, end] = states.map(|name| evaluator_parameters(&workspace, "two", name));
    let factors: Vec<String> = all.keys().filter(|name| is_lora_factor(name)).cloned().collect();
    // Four weights in each of five layers and the patch embedding have two factors each.
    assert_eq!((factors.len(), changed_parameters(&all, &lora)), (2 * (4 * 5 + 1), factors));
    assert_eq!(changed_parameters(&lora, &projections), ["text_projection", "visual.proj"]);
    assert_eq!(changed_parameters(&projections, &end), Vec::<String>::new());
    let moments = read_tensors(&checkpoint_path(&workspace, "two", states[1]).join("optimizer.safetensors"));
    assert_eq!(moments.len(), 2 * 2 * (4 * 5 + 1));
    assert!(moments.keys().all(|name| is_lora_factor(name)));
}

#[test]
fn a_run_that_was_stopped_and_resumed_in_a_lora_stage_equals_an_uninterrupted_run() {
    let workspace = Workspace::new();
    let uninterrupted = run_to_completion(&workspace, &run_file(&workspace, "uninterrupted", 2, SHORT_RUN), 2);
    let stopped = run_file(&workspace, "stopped", 2, SHORT_RUN);
    let coordinator = Coordinator::start(&workspace, &stopped);
    let workers: Vec<_> = (0..2).map(|worker_id| coordinator.start_worker(&workspace, worker_id)).collect();
    let seal = checkpoint_path(&workspace, "stopped", "1-lora-00000004").join("checkpoint.json");
    wait_for("a checkpoint of the stage", || seal.exists().then_some(()));
    coordinator.process.terminate();
    for worker in workers {
        let (succeeded, printed) = worker.finish();
        assert!(succeeded && printed.starts_with("left rank=") && !printed.contains("finished"), "{printed}");
    }
    assert!(coordinator.process.succeeds());
    assert!(!checkpoint_path(&workspace, "stopped", "2-projections-00000004").exists(), "the run was stopped too late");
    assert_eq!(uninterrupted, run_to_completion(&workspace, &stopped, 2));
}

#[test]
fn a_run_starts_from_an_evaluator_with_lora_factors_and_uses_its_vision_encoder() {
    let workspace = Workspace::new();
    run_to_completion(&workspace, &run_file(&workspace, "first", 1, SHORT_RUN), 1);
    let first = workspace.last_checkpoint("first").display().to_string();
    let optimizer = "optimizer: { learning_rate: 1.0e-3 }";
    let folder = workspace.path("").display().to_string();
    let run_next = |name: &str, captioner: &str, stage: &str| {
        let text = format!(
            "name: test\nseed: 5\noutput: {folder}{name}\nworkers: {{ min: 1, max: 1 }}\n\
             data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n\
             vocabulary: corpus\nevaluator: {{ weights: {first} }}\ncaptioner: {{ {captioner}, dropout: 0.0 }}\n\
             decoding: {{ beams: 2, max_length: 8 }}\nstages:\n  \
             - {{ name: next, objective: {stage}, steps: 2, batch: 6, {optimizer} }}\n"
        );
        let path = workspace.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        run_to_completion(&workspace, &path, 1);
        (path, workspace.last_checkpoint(name))
    };
    // The first captioner takes the vision encoder of the checkpoint's captioner, the second that
    // of the checkpoint's evaluator.
    for (name, captioner, stage) in [
        ("fine-tuned", format!("weights: {first}"), "dico"),
        ("from-scratch", "preset: tiny".to_owned(), "cross_entropy"),
    ] {
        let (config, checkpoint) = run_next(name, &captioner, stage);
        let manifest = std::fs::read_to_string(checkpoint.join("models.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["vision"]["lora"], "merged", "{name}");
        let [config, checkpoint] = [config, checkpoint].map(|path| path.display().to_string());
        let evaluated = worker_json(&["evaluate", "--config", &config, "--checkpoint", &checkpoint, "--json"]);
        assert!(evaluated["corpus"]["cider"].is_number(), "{name}: {evaluated}");
    }
}

/// Runs `worker`. Returns the JSON that it prints.
fn worker_json(arguments: &[&str]) -> Value {
    let output = run("worker", arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_exported_evaluator_scores_as_its_checkpoint_does() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 1, ("full", 300));
    run_to_completion(&workspace, &config, 1);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let from = text(&workspace.last_checkpoint("run"));
    let export = |name: &str, options: &[&str]| {
        let to = text(&workspace.path(name));
        let exported = worker_json(&[&["export-evaluator", "--from", &from, "--to", &to, "--json"], options].concat());
        // The argument of `--evaluator`.
        let settings = exported["clip"].as_object().unwrap().iter();
        let settings = settings.map(|(key, value)| format!(",{key}={}", value.to_string().replace('"', "")));
        (exported["tensors"].as_u64().unwrap(), format!("pac_s={to}{}", settings.collect::<String>()))
    };
    let (merged_tensors, merged) = export("merged.pth", &[]);
    let (separate_tensors, separate) = export("separate.pth", &["--lora", "apart"]);
    assert_eq!(separate_tensors, merged_tensors + 2 * (4 * 5 + 1));
    assert!(merged.ends_with("merged.pth,family=openai,text_heads=4,vision_heads=4"), "{merged}");

    // Scores the reference captions of the training images. Cosines of other images are below zero,
    // where all scores are 0.
    let captions = text(&workspace.path("captions.json"));
    let data = std::fs::read_to_string(workspace.path("world/dataset.json")).unwrap();
    let data: Value = serde_json::from_str(&data).unwrap();
    let training_images = data["images"].as_array().unwrap().iter().filter(|image| image["split"] == "train");
    let references = training_images
        .map(|image| (image["filename"].as_str().unwrap().to_owned(), image["sentences"][0]["raw"].clone()));
    std::fs::write(&captions, Value::from(references.collect::<serde_json::Map<_, _>>()).to_string()).unwrap();
    let config = text(&config);
    let score = |evaluator: &str| {
        let arguments = ["score", "--config", &config, "--split", "train", "--candidates", &captions, "--json"];
        worker_json(&[&arguments[..], &["--evaluator", evaluator]].concat())
    };
    let checkpoint_scores = score(&format!("pac_s={from}"));
    let expected = checkpoint_scores["items"]["pac_s"].as_object().unwrap();
    assert!(expected.values().filter(|score| score.as_f64().unwrap() > 0.0).count() > 10, "{expected:?}");
    for evaluator in [&merged, &separate] {
        let scores = score(evaluator);
        for (image, expected) in expected {
            let (score, expected) = (scores["items"]["pac_s"][image].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((score - expected).abs() < 1e-5, "{evaluator}, {image}: {score}, not {expected}");
        }
    }
    // The published scorer ignores the factors of the MLPs, so its scores differ.
    let published_scores = score(&separate.replace(",lora=merged", ""));
    assert_ne!(published_scores["corpus"]["pac_s"], checkpoint_scores["corpus"]["pac_s"]);

    let to = text(&workspace.path("merged.pth"));
    let error = error_line(&run("worker", &["export-evaluator", "--from", &from, "--to", &to]));
    assert!(error.contains("merged.pth exists"), "{error}");
    let [from, to] = ["world", "other.pth"].map(|name| text(&workspace.path(name)));
    let error = error_line(&run("worker", &["export-evaluator", "--from", &from, "--to", &to]));
    assert!(error.contains("is not a model folder"), "{error}");
}

#[test]
fn an_evaluator_with_a_corpus_vocabulary_is_not_exported() {
    let workspace = Workspace::new();
    let config = workspace.run_file("corpus", 1, "");
    run_to_completion(&workspace, &config, 1);
    let from = workspace.last_checkpoint("corpus").to_string_lossy().into_owned();
    let to = workspace.path("evaluator.pth").to_string_lossy().into_owned();
    let error = error_line(&run("worker", &["export-evaluator", "--from", &from, "--to", &to]));
    assert!(error.contains("the evaluator has only the tokens of its training captions"), "{error}");
    assert!(!workspace.path("evaluator.pth").exists());
}
