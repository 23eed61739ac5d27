//! Stages that train a part of the evaluator, with real workers: the last projections, as PAC-S, or LoRA factors, as PAC-S++; and
//! the evaluators that leave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use test_support::{Coordinator, Workspace, complete, error_line, run, tensors, wait_for};

/// A run whose first stage trains all of the evaluator in so many steps, whose second trains factors and whose third the projections,
/// and which is judged by what came of it.
fn run_file(workspace: &Workspace, name: &str, workers: u32, (vocabulary, steps): (&str, u32)) -> PathBuf {
    let folder = workspace.path("").display().to_string();
    let optimizer = "optimizer: { learning_rate: 1.0e-3, epsilon: 1.0e-3 }";
    let lora = "{ lora: { rank: 3, alpha: 24 } }";
    let contrastive =
        |trainable: &str| format!("objective: contrastive, contrastive: {{ trainable: {trainable} }}, batch: 12");
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

/// Vocabulary and steps of runs of which the parameters alone matter.
const SHORT: (&str, u32) = ("corpus", 4);

fn checkpoint(workspace: &Workspace, run: &str, name: &str) -> PathBuf {
    workspace.path(run).join("checkpoints").join(name)
}

fn evaluator(workspace: &Workspace, run: &str, name: &str) -> BTreeMap<String, Vec<f32>> {
    tensors(&checkpoint(workspace, run, name).join("evaluator.safetensors"))
}

/// Names of what differs between two states.
fn changed(before: &BTreeMap<String, Vec<f32>>, after: &BTreeMap<String, Vec<f32>>) -> Vec<String> {
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    before.iter().filter(|(name, values)| bits(values) != bits(&after[*name])).map(|(name, _)| name.clone()).collect()
}

fn is_factor(name: &str) -> bool {
    name.ends_with("lora_A") || name.ends_with("lora_B")
}

#[test]
fn stages_change_their_part_alone_and_two_workers_do_what_one_does() {
    let workspace = Workspace::new();
    let one = complete(&workspace, &run_file(&workspace, "one", 1, SHORT), 1);
    let two = complete(&workspace, &run_file(&workspace, "two", 2, SHORT), 2);
    assert_eq!(two[0], two[1], "ranks differ");
    // The sums are taken in another order, so the bits differ, or this compares one run with itself.
    assert_ne!(one[0], two[0]);
    let (one, two) = (workspace.parameters("one"), workspace.parameters("two"));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, values) in &one {
        for (a, b) in values.iter().zip(&two[name]) {
            assert!((a - b).abs() < 5e-5, "{name}: {a} and {b}");
        }
    }
    let states = ["0-all-00000004", "1-lora-00000012", "2-projections-00000004", "4-dico-00000002"];
    let [all, lora, projections, end] = states.map(|name| evaluator(&workspace, "two", name));
    let factors: Vec<String> = all.keys().filter(|name| is_factor(name)).cloned().collect();
    // Two factors of four weights in each of five layers, and of the patch embedding.
    assert_eq!((factors.len(), changed(&all, &lora)), (2 * (4 * 5 + 1), factors));
    assert_eq!(changed(&lora, &projections), ["text_projection", "visual.proj"]);
    assert_eq!(changed(&projections, &end), Vec::<String>::new());
    let moments = tensors(&checkpoint(&workspace, "two", states[1]).join("optimizer.safetensors"));
    assert_eq!(moments.len(), 2 * 2 * (4 * 5 + 1));
    assert!(moments.keys().all(|name| is_factor(name)));
}

#[test]
fn a_run_that_was_stopped_in_the_middle_of_a_lora_stage_equals_one_that_was_not() {
    let workspace = Workspace::new();
    let whole = complete(&workspace, &run_file(&workspace, "whole", 2, SHORT), 2);
    let stopped = run_file(&workspace, "stopped", 2, SHORT);
    let coordinator = Coordinator::start(&workspace, &stopped);
    let workers: Vec<_> = (0..2).map(|rank| coordinator.worker(&workspace, rank)).collect();
    let saved = checkpoint(&workspace, "stopped", "1-lora-00000004").join("checkpoint.json");
    wait_for("a checkpoint of the stage", || saved.exists().then_some(()));
    coordinator.process.terminate();
    for worker in workers {
        let (well, printed) = worker.finish();
        assert!(well && printed.starts_with("left rank=") && !printed.contains("finished"), "{printed}");
    }
    assert!(coordinator.process.finish().0);
    assert!(!checkpoint(&workspace, "stopped", "2-projections-00000004").exists(), "it was stopped too late");
    assert_eq!(whole, complete(&workspace, &stopped, 2));
}

#[test]
fn runs_start_from_an_evaluator_with_factors_and_see_through_it() {
    let workspace = Workspace::new();
    complete(&workspace, &run_file(&workspace, "first", 1, SHORT), 1);
    let first = workspace.last_checkpoint("first").display().to_string();
    let optimizer = "optimizer: { learning_rate: 1.0e-3 }";
    let folder = workspace.path("").display().to_string();
    let next = |name: &str, captioner: &str, stage: &str| {
        let text = format!(
            "name: test\nseed: 5\noutput: {folder}{name}\nworkers: {{ min: 1, max: 1 }}\n\
             data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n\
             vocabulary: corpus\nevaluator: {{ weights: {first} }}\ncaptioner: {{ {captioner}, dropout: 0.0 }}\n\
             decoding: {{ beams: 2, max_length: 8 }}\nstages:\n  \
             - {{ name: next, objective: {stage}, steps: 2, batch: 6, {optimizer} }}\n"
        );
        let path = workspace.path(&format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        complete(&workspace, &path, 1);
        (path, workspace.last_checkpoint(name))
    };
    // One sees through the tower in the other run's folder, the other through the evaluator's file.
    for (name, captioner, stage) in [
        ("fine-tuned", format!("weights: {first}"), "dico"),
        ("from-scratch", "preset: tiny".to_owned(), "cross_entropy"),
    ] {
        let (config, checkpoint) = next(name, &captioner, stage);
        let manifest = std::fs::read_to_string(checkpoint.join("models.json")).unwrap();
        let manifest: Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["vision"]["lora"], "merged", "{name}");
        let [config, checkpoint] = [config, checkpoint].map(|path| path.display().to_string());
        let evaluated = printed(&["evaluate", "--config", &config, "--checkpoint", &checkpoint, "--json"]);
        assert!(evaluated["corpus"]["cider"].is_number(), "{name}: {evaluated}");
    }
}

/// What `worker` prints as JSON.
fn printed(arguments: &[&str]) -> Value {
    let output = run("worker", arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_exported_evaluator_scores_as_the_checkpoint_does() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 1, ("full", 300));
    complete(&workspace, &config, 1);
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let from = text(&workspace.last_checkpoint("run"));
    let export = |name: &str, more: &[&str]| {
        let to = text(&workspace.path(name));
        let exported = printed(&[&["export-evaluator", "--from", &from, "--to", &to, "--json"], more].concat());
        // As `--evaluator` takes it.
        let settings = exported["clip"].as_object().unwrap().iter();
        let settings = settings.map(|(key, value)| format!(",{key}={}", value.to_string().replace('"', "")));
        (exported["tensors"].as_u64().unwrap(), format!("pac_s={to}{}", settings.collect::<String>()))
    };
    let (plain, merged) = export("merged.pth", &[]);
    let (with_factors, apart) = export("apart.pth", &["--lora", "apart"]);
    assert_eq!(with_factors, plain + 2 * (4 * 5 + 1));
    assert!(merged.ends_with("merged.pth,family=openai,text_heads=4,vision_heads=4"), "{merged}");

    // The reference captions of the images that it was trained on: for others cosines are below
    // zero, which scores do not show.
    let captions = text(&workspace.path("captions.json"));
    let data = std::fs::read_to_string(workspace.path("world/dataset.json")).unwrap();
    let data: Value = serde_json::from_str(&data).unwrap();
    let learned = data["images"].as_array().unwrap().iter().filter(|image| image["split"] == "train");
    let said =
        learned.map(|image| (image["filename"].as_str().unwrap().to_owned(), image["sentences"][0]["raw"].clone()));
    std::fs::write(&captions, Value::from(said.collect::<serde_json::Map<_, _>>()).to_string()).unwrap();
    let config = text(&config);
    let score = |evaluator: &str| {
        let arguments = ["score", "--config", &config, "--split", "train", "--candidates", &captions, "--json"];
        printed(&[&arguments[..], &["--evaluator", evaluator]].concat())
    };
    let of_checkpoint = score(&format!("pac_s={from}"));
    let expected = of_checkpoint["items"]["pac_s"].as_object().unwrap();
    assert!(expected.values().filter(|score| score.as_f64().unwrap() > 0.0).count() > 10, "{expected:?}");
    for evaluator in [&merged, &apart] {
        let found = score(evaluator);
        for (image, expected) in expected {
            let (found, expected) = (found["items"]["pac_s"][image].as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() < 1e-5, "{evaluator}, {image}: {found}, not {expected}");
        }
    }
    // Without the MLPs' factors, as the released scorer reads them, it is another model.
    let as_released = score(&apart.replace(",lora=merged", ""));
    assert_ne!(as_released["corpus"]["pac_s"], of_checkpoint["corpus"]["pac_s"]);

    let to = text(&workspace.path("merged.pth"));
    let refused = |from: &str, more: &[&str]| {
        let to = text(&workspace.path("other.pth"));
        error_line(&run("worker", &[&["export-evaluator", "--from", from, "--to", &to], more].concat()))
    };
    let exists = error_line(&run("worker", &["export-evaluator", "--from", &from, "--to", &to]));
    assert!(exists.contains("merged.pth exists"), "{exists}");
    let none = refused(&text(&workspace.path("world")), &[]);
    assert!(none.contains("is no model folder"), "{none}");
}

#[test]
fn evaluators_that_other_programs_could_not_use_are_not_exported() {
    let workspace = Workspace::new();
    let config = workspace.run_file("corpus", 1, "");
    complete(&workspace, &config, 1);
    let from = workspace.last_checkpoint("corpus").to_string_lossy().into_owned();
    let to = workspace.path("evaluator.pth").to_string_lossy().into_owned();
    let refused = error_line(&run("worker", &["export-evaluator", "--from", &from, "--to", &to]));
    assert!(refused.contains("its evaluator knows the tokens of its training captions only"), "{refused}");
    assert!(!workspace.path("evaluator.pth").exists());
}
