//! Bad input gets one clear line and a non-zero exit, and leaves nothing behind.

use std::net::TcpListener;

use test_support::{Coordinator, Workspace, error_line, run};

fn validate(workspace: &Workspace, text: &str) -> String {
    let path = workspace.path("bad.yaml");
    std::fs::write(&path, text).unwrap();
    error_line(&run("coordinator", &["validate", "--config", &path.to_string_lossy()]))
}

fn good(workspace: &Workspace) -> String {
    std::fs::read_to_string(workspace.run_file("run", 1, "")).unwrap()
}

#[test]
fn an_unknown_or_mistyped_key_is_named_with_its_place_and_the_nearest_valid_key() {
    let workspace = Workspace::new();
    let error = validate(&workspace, &good(&workspace).replace("seed: 11", "sede: 11"));
    assert!(error.ends_with("bad.yaml:2:1: unknown key `sede`: did you mean `seed`?"), "{error}");
    let error = validate(&workspace, &good(&workspace).replace("steps: 6", "steps: many"));
    assert!(error.contains("bad.yaml:14:") && error.contains("many"), "{error}");
    let error = validate(&workspace, &good(&workspace).replace("objective: dico", "objective: diko"));
    assert!(error.contains("unknown value `diko`: did you mean `dico`?"), "{error}");
    let error = validate(&workspace, &good(&workspace).replace("steps: 6", "steps: 0"));
    assert!(error.ends_with("bad.yaml:14:50: stages[1].steps: must be at least 1"), "{error}");
    let error = validate(&workspace, "name: [");
    assert!(error.contains("bad.yaml:1:"), "{error}");
}

#[test]
fn a_reward_of_an_evaluator_that_nothing_has_trained_is_refused_wherever_run_files_are_read() {
    let workspace = Workspace::new();
    let text = good(&workspace).replace("objective: contrastive", "objective: cross_entropy");
    let error = validate(&workspace, &text);
    assert!(
        error.contains("bad.yaml:15:5: stages[2].dico.reward: the reward `pac_s` comes from the evaluator"),
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
    let error = validate(&workspace, &good(&workspace).replace("dataset.json", "missing.json"));
    assert!(error.contains("world/missing.json") && error.matches("No such file").count() == 1, "{error}");
}

/// The line that a single worker of `run_file` ends with.
fn worker_error(workspace: &Workspace, run_file: &std::path::Path) -> String {
    let coordinator = Coordinator::start(workspace, run_file);
    error_line(&run("worker", &["join", "--coordinator", &coordinator.url, "--threads", "1"]))
}

#[test]
fn an_annotation_of_a_missing_or_corrupt_image_is_refused_or_skipped_and_counted() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let images = workspace.path("world/images");
    let dataset = std::fs::read_to_string(workspace.path("world/dataset.json")).unwrap();
    let dataset: serde_json::Value = serde_json::from_str(&dataset).unwrap();
    let all = dataset["images"].as_array().unwrap();
    let train = |n: usize| {
        let of_train = all.iter().filter(|image| image["split"] == "train");
        of_train.map(|image| image["filename"].as_str().unwrap()).nth(n).unwrap()
    };
    std::fs::remove_file(images.join(train(0))).unwrap();
    let error = worker_error(&workspace, &run_file);
    assert!(error.contains(train(0)) && error.contains("data.skip_corrupt"), "{error}");

    std::fs::write(images.join(train(0)), b"no image").unwrap();
    let error = worker_error(&workspace, &run_file);
    assert!(error.contains(train(0)) && error.contains("data.skip_corrupt"), "{error}");

    let run_file = workspace.run_file("skipping", 1, "");
    let skipping = std::fs::read_to_string(&run_file).unwrap().replace("data:\n", "data:\n  skip_corrupt: true\n");
    std::fs::write(&run_file, skipping).unwrap();
    let coordinator = Coordinator::start(&workspace, &run_file);
    let worker = coordinator.worker(&workspace, 0);
    assert!(worker.finish().0);
    assert!(coordinator.process.finish().0);
    let log = std::fs::read_to_string(workspace.path("worker-0.log")).unwrap();
    assert!(log.contains(train(0)), "{log}");
}

#[test]
fn a_port_in_use_is_named() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = run_file.to_string_lossy().into_owned();
    let error = error_line(&run("coordinator", &["serve", "--config", &config, "--listen", &address]));
    assert!(error.contains(&address), "{error}");
    assert!(!workspace.path("run").exists(), "it left its state behind");
}

#[test]
fn a_rank_taken_twice_is_refused_and_the_first_holder_goes_on() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 2, ""));
    let first = coordinator.worker(&workspace, 0);
    while !first.log().contains("joined") {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let second = run("worker", &["join", "--coordinator", &coordinator.url, "--rank", "0"]);
    let error = error_line(&second);
    assert!(error.contains("rank 0"), "{error}");
    let other = coordinator.worker(&workspace, 1);
    assert!(first.finish().0 && other.finish().0);
}

#[test]
fn a_coordinator_that_is_not_there_is_tried_again_and_given_up_after_the_stated_time() {
    // A port that was free a moment ago and that nobody listens on.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{address}");
    let output = run("worker", &["join", "--coordinator", &url, "--join-timeout", "1"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("trying again in 0.1 s") && said.contains("trying again in 0.2 s"), "{said}");
    assert!(error_line(&output).contains("gave up on"), "{said}");
}
