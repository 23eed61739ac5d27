//! Errors of bad input: one line that names the cause, exit status 1, and no files left behind.

use std::net::TcpListener;

use test_support::{Coordinator, Workspace, error_line, run};

/// Validates a run file with this text, which is invalid. Returns the error.
fn validation_error(workspace: &Workspace, text: &str) -> String {
    let path = workspace.path("bad.yaml");
    std::fs::write(&path, text).unwrap();
    error_line(&run("coordinator", &["validate", "--config", &path.to_string_lossy()]))
}

/// The text of a valid run file.
fn valid_run_file(workspace: &Workspace) -> String {
    std::fs::read_to_string(workspace.run_file("run", 1, "")).unwrap()
}

#[test]
fn an_unknown_or_mistyped_key_is_named_with_its_position_and_the_nearest_valid_key() {
    let workspace = Workspace::new();
    let error = validation_error(&workspace, &valid_run_file(&workspace).replace("seed: 11", "sede: 11"));
    assert!(error.ends_with("bad.yaml:2:1: unknown key `sede`: did you mean `seed`?"), "{error}");
    let error = validation_error(&workspace, &valid_run_file(&workspace).replace("steps: 6", "steps: many"));
    assert!(error.contains("bad.yaml:14:") && error.contains("many"), "{error}");
    let error = validation_error(&workspace, &valid_run_file(&workspace).replace("objective: dico", "objective: diko"));
    assert!(error.contains("unknown value `diko`: did you mean `dico`?"), "{error}");
    let error = validation_error(&workspace, &valid_run_file(&workspace).replace("steps: 6", "steps: 0"));
    assert!(error.ends_with("bad.yaml:14:50: stages[1].steps: must be at least 1"), "{error}");
    let error = validation_error(&workspace, "name: [");
    assert!(error.contains("bad.yaml:1:"), "{error}");
}

#[test]
fn every_command_refuses_a_reward_of_an_untrained_evaluator() {
    let workspace = Workspace::new();
    let text = valid_run_file(&workspace).replace("objective: contrastive", "objective: cross_entropy");
    let error = validation_error(&workspace, &text);
    assert!(
        error.contains("bad.yaml:15:30: stages[2].objective.dico.reward: the reward `pac_s` comes from the evaluator"),
        "{error}"
    );
    assert!(
        error.ends_with("put a stage with `objective: contrastive` before it, or set evaluator.weights"),
        "{error}"
    );
    let config = workspace.path("bad.yaml").to_string_lossy().into_owned();
    for (program, arguments) in [
        ("coordinator", &["serve", "--config", &config, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"][..]),
        ("worker", &["encode", "--config", &config, "--split", "val", "--out", "features"]),
    ] {
        assert_eq!(error_line(&run(program, arguments)), error, "{program}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let workspace = Workspace::new();
    let error = error_line(&run("coordinator", &["validate", "--config", "/nowhere/run.yaml"]));
    assert!(error.contains("/nowhere/run.yaml") && error.contains("No such file"), "{error}");
    let error = validation_error(&workspace, &valid_run_file(&workspace).replace("dataset.json", "missing.json"));
    assert!(error.contains("world/missing.json") && error.matches("No such file").count() == 1, "{error}");
}

/// The error of a worker that joins a run and fails.
fn worker_error(workspace: &Workspace, run_file: &std::path::Path) -> String {
    let coordinator = Coordinator::start(workspace, run_file);
    error_line(&run("worker", &["join", "--coordinator", &coordinator.url, "--threads", "1"]))
}

#[test]
fn an_annotation_of_a_missing_or_corrupt_image_is_refused_or_skipped() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let image_folder = workspace.path("world/images");
    let dataset = std::fs::read_to_string(workspace.path("world/dataset.json")).unwrap();
    let dataset: serde_json::Value = serde_json::from_str(&dataset).unwrap();
    let images = dataset["images"].as_array().unwrap();
    let training_image = |index: usize| {
        let training_images = images.iter().filter(|image| image["split"] == "train");
        training_images.map(|image| image["filename"].as_str().unwrap()).nth(index).unwrap()
    };
    std::fs::remove_file(image_folder.join(training_image(0))).unwrap();
    let error = worker_error(&workspace, &run_file);
    assert!(error.contains(training_image(0)) && error.contains("data.skip_corrupt"), "{error}");

    std::fs::write(image_folder.join(training_image(0)), b"no image").unwrap();
    let error = worker_error(&workspace, &run_file);
    assert!(error.contains(training_image(0)) && error.contains("data.skip_corrupt"), "{error}");

    let run_file = workspace.run_file("skipping", 1, "");
    let skipping = std::fs::read_to_string(&run_file).unwrap().replace("data:\n", "data:\n  skip_corrupt: true\n");
    std::fs::write(&run_file, skipping).unwrap();
    let coordinator = Coordinator::start(&workspace, &run_file);
    let worker = coordinator.start_worker(&workspace, 0);
    assert!(worker.succeeds());
    assert!(coordinator.process.succeeds());
    let log = std::fs::read_to_string(workspace.path("worker-0.log")).unwrap();
    assert!(log.contains(training_image(0)), "{log}");
}

#[test]
fn an_address_in_use_is_named() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let config = run_file.to_string_lossy().into_owned();
    let error = error_line(&run("coordinator", &["serve", "--config", &config, "--listen", &address]));
    assert!(error.contains(&address), "{error}");
    assert!(!workspace.path("run").exists(), "the coordinator left its state behind");
}

#[test]
fn a_second_worker_with_the_same_id_is_refused_and_the_first_continues() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 2, ""));
    let first = coordinator.start_worker(&workspace, 0);
    while !first.log().contains("joined") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = run("worker", &["join", "--coordinator", &coordinator.url, "--rank", "0"]);
    let error = error_line(&second);
    assert!(error.contains("worker id 0"), "{error}");
    let other = coordinator.start_worker(&workspace, 1);
    assert!(first.succeeds() && other.succeeds());
}

#[test]
fn a_worker_retries_to_join_an_unreachable_coordinator_until_the_join_timeout() {
    // A free port, on which no process listens.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let output = run("worker", &["join", "--coordinator", &url, "--join-timeout", "1"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("trying again in 0.1 s") && stderr.contains("trying again in 0.2 s"), "{stderr}");
    assert!(error_line(&output).contains("gave up on"), "{stderr}");
}
