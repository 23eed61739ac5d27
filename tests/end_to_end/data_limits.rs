//! Limits of the data: many and long captions, and sizes that `coordinator validate` warns about or
//! refuses.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use test_support::{Workspace, error_line, run, run_to_completion};

/// Replaces the captions of an image, given by its index in a split. Returns its file name.
fn replace_captions(workspace: &Workspace, split: &str, index: usize, captions: Vec<String>) -> String {
    let path = workspace.path("world/dataset.json");
    let mut dataset: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let images = dataset["images"].as_array_mut().unwrap();
    let image = images.iter_mut().filter(|image| image["split"] == split).nth(index).unwrap();
    image["sentences"] = captions.into_iter().map(|raw| json!({ "raw": raw })).collect();
    let name = image["filename"].as_str().unwrap().to_owned();
    std::fs::write(&path, dataset.to_string()).unwrap();
    name
}

/// A caption of this length.
fn caption(bytes: usize) -> String {
    let mut text = "a red circle and a blue square ".repeat(bytes / 31 + 1);
    text.truncate(bytes - 1);
    text + "."
}

fn validate(run_file: &Path) -> std::process::Output {
    run("coordinator", &["validate", "--config", &run_file.to_string_lossy()])
}

/// Validates a valid run file. Returns stdout.
fn validation_report(run_file: &Path) -> String {
    let output = validate(run_file);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_run_trains_and_evaluates_on_a_thousand_references_and_long_captions() {
    let workspace = Workspace::new();
    replace_captions(&workspace, "val", 0, vec![caption(50); 33]);
    replace_captions(&workspace, "val", 1, (0..1_000).map(|number| caption(60 + number % 40)).collect());
    replace_captions(&workspace, "val", 2, vec![caption(4_097), caption(65_536)]);
    replace_captions(&workspace, "train", 0, vec![caption(65_536)]);
    let run_file = workspace.run_file("run", 2, "");
    let report = validation_report(&run_file);
    let lengths = "captions: 1 of 236 training captions are longer than captioner.max_target_length (77 tokens";
    assert!(report.contains(lengths), "{report}");
    run_to_completion(&workspace, &run_file, 2);
    let (_, captions) = workspace.evaluations("run").pop().unwrap();
    let references: Vec<Vec<String>> = captions.into_iter().map(|caption| caption.references).collect();
    let mut counts: Vec<usize> = references.iter().map(Vec::len).collect();
    counts.sort_unstable();
    assert_eq!(counts, [2, 5, 5, 5, 33, 1_000]);
    let longest = references.iter().flatten().map(String::len).max();
    assert_eq!(longest, Some(65_536));
    assert_eq!(workspace.events("run", "lost"), [json!(null); 0]);
}

#[test]
fn coordinator_and_worker_name_image_and_file_of_captions_beyond_the_limits() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let original = std::fs::read(workspace.path("world/dataset.json")).unwrap();
    for (split, captions, expected) in [
        ("val", vec![caption(50); 1_001], "has 1001 captions, an image can have 1000 at most"),
        ("train", vec![caption(65_537)], "has a caption of 65537 bytes, a caption can have 65536 at most"),
    ] {
        let name = replace_captions(&workspace, split, 1, captions);
        let coordinator = test_support::Coordinator::start(&workspace, &run_file);
        let join = ["join", "--coordinator", &coordinator.url, "--threads", "1"];
        for error in [error_line(&validate(&run_file)), error_line(&run("worker", &join))] {
            assert!(error.contains("world/dataset.json: ") && error.contains(&format!("{name} {expected}")), "{error}");
        }
        std::fs::write(workspace.path("world/dataset.json"), &original).unwrap();
    }
}

/// Writes the run file with some of its text replaced.
fn changed_run_file(workspace: &Workspace, from: &str, to: &str) -> PathBuf {
    let path = workspace.run_file("changed", 1, "");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    path
}

#[test]
fn validation_reports_lengths_and_batches_that_do_not_fit_the_data() {
    let workspace = Workspace::new();
    let report = validation_report(&changed_run_file(&workspace, "max_length: 12", "max_length: 8"));
    let counts = report.lines().find(|line| line.contains("than decoding.max_length (8 tokens")).unwrap();
    let longer: u32 =
        counts.split("stages truncate them), ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((1..240).contains(&longer), "{counts}");
    assert!(counts.contains("0 of 240 training captions are longer"), "{counts}");

    let report = validation_report(&changed_run_file(&workspace, "steps: 4, batch: 6", "steps: 4, batch: 55"));
    assert!(report.contains("stage dico: its batch of 55 is more than the 48 training images"), "{report}");
    let report = validation_report(&changed_run_file(&workspace, "steps: 6, batch: 12", "steps: 6, batch: 240"));
    assert!(!report.contains("its batch"), "{report}");

    let error = error_line(&validate(&changed_run_file(&workspace, "max: 1", "max: 9")));
    assert!(error.contains("stages[2].batch: is 6, and workers.max is 9: every worker needs a sample"), "{error}");
    let error =
        error_line(&validate(&changed_run_file(&workspace, "dropout: 0.0", "dropout: 0.0, max_target_length: 78")));
    assert!(error.contains("captioner.max_target_length: is 78, the captioner has 77 positions"), "{error}");

    std::fs::create_dir(workspace.path("changed")).unwrap();
    std::fs::write(workspace.path("changed/captions"), "a file instead of a folder").unwrap();
    // The run's output is on the coordinator's machine, so only `serve` checks it.
    let run_file = changed_run_file(&workspace, "seed: 11", "seed: 12");
    let run_file = run_file.to_string_lossy();
    let output =
        run("coordinator", &["serve", "--config", &run_file, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let error = error_line(&output);
    assert!(error.contains("captions of evaluations: ") && error.contains("changed/captions"), "{error}");
}

#[test]
fn cross_entropy_training_does_not_depend_on_the_maximal_length_of_generated_captions() {
    let workspace = Workspace::new();
    let train = |name: &str, max_length: u32, captioner_settings: &str| {
        let path = workspace.run_file(name, 1, "");
        let text = std::fs::read_to_string(&path).unwrap();
        // Removes the stage that generates captions.
        let dico_stage = text.find("  - { name: dico").unwrap();
        let text = text[..dico_stage].replace("max_length: 12", &format!("max_length: {max_length}"));
        std::fs::write(&path, text.replace("dropout: 0.0", &format!("dropout: 0.0{captioner_settings}"))).unwrap();
        run_to_completion(&workspace, &path, 1)
    };
    let first = train("first", 12, "");
    assert_eq!(first, train("second", 5, ""));
    assert_eq!(first, train("third", 12, ", max_target_length: 60"));
    assert_ne!(first, train("fourth", 12, ", max_target_length: 5"));
}
