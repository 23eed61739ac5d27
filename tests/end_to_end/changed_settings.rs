//! Settings and training data that change between two starts of a run's coordinator.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use config::{Change, Mutability};
use dico_engine::plan::Position;
use journal::{ReadOnlyJournal, RecordedStep};
use test_support::{Coordinator, Process, Workspace, command, error_line, last_trained_generation, run, wait_for};

const STAGES: &str = "stages:
  - name: xe
    objective: cross_entropy
    steps: STEPS
    batch: 12
    checkpoint_every: 20
    optimizer: { learning_rate: 0.001 }
";

/// The part of the run file without name, output, models and stages.
fn common_settings(workspace: &Workspace) -> String {
    let folder = workspace.path("").display().to_string();
    format!(
        "workers: {{ min: 1, max: 2 }}\nseed: 11\n\
         data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n\
         vocabulary: corpus\ndecoding: {{ beams: 2, max_length: 8 }}\ncontrol: {{ heartbeat_timeout: 2 }}\n"
    )
}

/// Writes a run file with this number of cross-entropy steps.
fn run_file(workspace: &Workspace, steps: u32) -> PathBuf {
    let text = format!(
        "name: test\noutput: {}\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n{}{}",
        workspace.path("run").display(),
        common_settings(workspace),
        STAGES.replace("STEPS", &steps.to_string())
    );
    let path = workspace.path("run.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

fn replace_in_file(run_file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(run_file).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(run_file, text.replace(from, to)).unwrap();
}

/// Serves a run file that the coordinator refuses. Returns stderr, with the list of changes, and
/// the error in its last line.
fn serve_refused(run_file: &Path, options: &[&str]) -> (String, String) {
    let config = run_file.to_string_lossy();
    let arguments = ["serve", "--config", &config, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let output = run("coordinator", &[&arguments, options].concat());
    (String::from_utf8_lossy(&output.stderr).into_owned(), error_line(&output))
}

/// Waits until there is a checkpoint of this step or of a later one.
fn wait_for_checkpoint(workspace: &Workspace, step: u64) {
    let journal = workspace.journal("run");
    wait_for("a checkpoint", || (journal.kept_checkpoints().unwrap().last()?.position.step >= step).then_some(()));
}

/// Up to `max` steps beyond the step `after` of the only stage.
fn steps_beyond(journal: &ReadOnlyJournal, after: u64, max: usize) -> Vec<RecordedStep> {
    journal.recorded_steps(Position { stage: 0, step: after }, max).unwrap()
}

#[test]
fn changed_settings_are_listed_and_refused_without_accept_changes() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, 120);
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.start_worker(&workspace, 0);
    wait_for_checkpoint(&workspace, 20);
    drop(worker);
    drop(coordinator);

    replace_in_file(&config, "learning_rate: 0.001", "learning_rate: 0.0005");
    let (list, line) = serve_refused(&config, &[]);
    assert!(list.contains("stages[0].optimizer.learning_rate: 0.001 -> 0.0005"), "{list}");
    assert!(line.contains("stages[0].optimizer.learning_rate") && line.contains("--accept-changes"), "{line}");

    // A change of the seed is refused even with --accept-changes. The coordinator prints lines for
    // the run file of a new run, which are valid.
    replace_in_file(&config, "seed: 11", "seed: 12");
    let (list, line) = serve_refused(&config, &["--accept-changes"]);
    assert!(list.contains("seed: 11 -> 12") && line.contains("another seed"), "{list}");
    let printed_lines = list
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("name:"))
        .take_while(|line| line.starts_with(' '));
    let new_run_lines: String = printed_lines.map(|line| format!("{}\n", line.trim_start())).collect();
    let stages = STAGES.replace("STEPS", "5");
    let text = format!("{}{new_run_lines}{}", common_settings(&workspace), stages.strip_prefix("stages:\n").unwrap());
    let new_run_file = workspace.path("new.yaml");
    std::fs::write(&new_run_file, text).unwrap();
    let validated = run("coordinator", &["validate", "--config", &new_run_file.to_string_lossy()]);
    assert!(validated.status.success(), "{new_run_lines}{validated:?}");
    replace_in_file(&config, "seed: 12", "seed: 11");
    assert!(workspace.journal("run").settings_changes().unwrap().is_empty());

    let coordinator = Coordinator::start_with(&workspace, &config, "http", &["--accept-changes"]);
    assert!(coordinator.start_worker(&workspace, 0).succeeds() && coordinator.process.succeeds());
    let changes = workspace.journal("run").settings_changes().unwrap();
    assert!(changes.len() == 1 && changes[0].position.step >= 20, "{changes:?}");
    let expected = Change {
        key: "stages[0].optimizer.learning_rate".into(),
        old: 0.001.into(),
        new: 0.0005.into(),
        mutability: Mutability::NextStep,
    };
    assert_eq!(changes[0].changes, [expected]);
    let steps = workspace.steps("run");
    let rate = |step: &RecordedStep| if step.generation == 1 { 0.001 } else { 0.0005 };
    assert!(steps.iter().all(|step| step.learning_rate == Some(rate(step))), "{steps:?}");
    let count = steps.iter().filter(|step| step.generation > 1).count();
    assert!(count >= 80, "{count} steps at the new rate");
}

/// Starts a coordinator on this port, and waits until it listens.
fn serve(workspace: &Workspace, run_file: &Path, port: u16, options: &[&str]) -> Process {
    let mut command = command("coordinator");
    let listen = format!("127.0.0.1:{port}");
    command
        .arg("serve")
        .arg("--config")
        .arg(run_file)
        .args(["--listen", &listen, "--http", "127.0.0.1:0"])
        .args(options);
    let mut process = Process::start(&mut command, workspace.path("coordinator.log"));
    assert!(process.read_line().starts_with("listening"));
    process
}

#[test]
fn a_worker_takes_over_the_new_settings_of_a_restarted_coordinator() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, 1_000_000);
    // A free port.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let coordinator = serve(&workspace, &config, port, &[]);
    let url = format!("http://127.0.0.1:{port}");
    let mut join = command("worker");
    join.args(["join", "--coordinator", &url, "--rank", "0", "--threads", "1"]);
    let mut worker = Process::start(&mut join, workspace.path("worker.log"));
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let source = || journal.generations().unwrap().pop().unwrap().source;
    wait_for("steps", || steps_beyond(&journal, 25, 1).pop());

    // The worker keeps its state, and continues with the new learning rate.
    drop(coordinator);
    replace_in_file(&config, "learning_rate: 0.001", "learning_rate: 0.0005");
    let coordinator = serve(&workspace, &config, port, &["--accept-changes"]);
    let changed_after = journal.settings_changes().unwrap().pop().unwrap().position.step;
    let rates = || -> Vec<(u64, f64)> {
        let steps = steps_beyond(&journal, changed_after - 5, 20);
        steps.iter().map(|step| (step.generation, step.learning_rate.unwrap())).collect()
    };
    wait_for("steps at the new rate", || {
        (rates().iter().filter(|(_, rate)| *rate == 0.0005).count() > 5).then_some(())
    });
    assert_eq!(source(), "worker 0");
    let rates = rates();
    assert!(rates.iter().all(|(generation, rate)| (*generation == 1) == (*rate == 0.001)), "{rates:?}");
    assert!(worker.log().contains("continuing with the coordinator's new settings"), "{}", worker.log());

    // A setting of data loading makes the worker load data and models again. The run continues from
    // the last checkpoint.
    wait_for_checkpoint(&workspace, 20);
    drop(coordinator);
    replace_in_file(&config, "data:\n", "data:\n  skip_corrupt: true\n");
    let coordinator = serve(&workspace, &config, port, &["--accept-changes"]);
    wait_for("steps after loading", || {
        last_trained_generation(&journal).filter(|(generation, _)| generation.number == 3)
    });
    assert!(source().starts_with("checkpoint 0-xe-"), "{}", source());
    assert!(worker.log().contains("loading data and models again"), "{}", worker.log());
    assert!(!worker.has_ended());
    drop(coordinator);
}

/// Edits the images of the training split in the annotations.
fn edit_training_images(workspace: &Workspace, edit: impl FnOnce(&mut Vec<serde_json::Value>)) {
    let path = workspace.path("world/dataset.json");
    let mut dataset: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let images = dataset["images"].as_array_mut().unwrap();
    let (mut training_images, mut others) = images.drain(..).partition::<Vec<_>, _>(|image| image["split"] == "train");
    edit(&mut training_images);
    training_images.append(&mut others);
    *images = training_images;
    std::fs::write(path, dataset.to_string()).unwrap();
}

fn copy_folder(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(status.success());
}

#[test]
fn changed_training_data_are_refused_without_accept_changes_and_begin_a_new_epoch() {
    const STEPS: u32 = 240;
    let workspace = Workspace::new();
    edit_training_images(&workspace, |images| {
        images[0]["sentences"][0] = serde_json::json!({ "raw": "a zebra", "tokens": ["a", "zebra"] });
    });
    let config = run_file(&workspace, STEPS);
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.start_worker(&workspace, 0);
    wait_for_checkpoint(&workspace, 40);
    drop(worker);
    drop(coordinator);

    // Removes an image, whose captions have a word that no other has, and corrects a caption of
    // another image.
    let mut images_before = 0;
    edit_training_images(&workspace, |images| {
        images_before = images.len() as u64;
        images.remove(0);
        images[0]["sentences"][0] = serde_json::json!({ "raw": "a corrected caption", "tokens": [] });
    });
    let coordinator = Coordinator::start(&workspace, &config);
    let mut worker = coordinator.start_worker(&workspace, 0);
    wait_for("the worker's end", || worker.has_ended().then_some(()));
    let log = worker.log();
    assert_eq!(worker.wait_for_exit().0, Some(1));
    let counts = format!("{} images and {} captions", images_before - 1, 5 * (images_before - 1));
    assert!(log.contains("training data differ") && log.contains(&counts) && log.contains("--accept-changes"), "{log}");
    drop(coordinator);
    copy_folder(&workspace.path("run"), &workspace.path("repeated"));

    let coordinator = Coordinator::start_with(&workspace, &config, "http", &["--accept-changes"]);
    assert!(coordinator.start_worker(&workspace, 0).succeeds() && coordinator.process.succeeds());
    let audit = run("coordinator", &["audit", "--config", &config.to_string_lossy(), "--json"]);
    let audit: serde_json::Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!((&audit["clean"], &audit["finished"]), (&true.into(), &true.into()));
    let step = audit["exchanges"][0]["step"].as_u64().unwrap();
    assert!(step >= 40 && step.is_multiple_of(20), "{audit}");
    let expected_change = serde_json::json!([{
        "stage": 0, "name": "xe", "step": step, "images_before": images_before, "images_after": images_before - 1,
        "captions_before": 5 * images_before, "captions_after": 5 * (images_before - 1),
    }]);
    assert_eq!(audit["exchanges"], expected_change);
    // Epochs of the old length, of which the last is incomplete, then epochs of the new length.
    let epochs = |samples: u64, length: u64| {
        let complete_epochs = std::iter::repeat_n(length, (samples / length) as usize);
        complete_epochs.chain((!samples.is_multiple_of(length)).then_some(samples % length))
    };
    let (samples_before, samples_after) = (12 * step, 12 * (u64::from(STEPS) - step));
    let expected: Vec<u64> =
        epochs(samples_before, 5 * images_before).chain(epochs(samples_after, 5 * (images_before - 1))).collect();
    let committed = audit["epochs"].as_array().unwrap().iter().map(|epoch| epoch["committed"].as_u64().unwrap());
    assert_eq!(committed.collect::<Vec<_>>(), expected);
    let journal = workspace.journal("run");
    let (changes, after) = (journal.data_changes().unwrap(), journal.training_split_size().unwrap().unwrap());
    let captions = (changes[0].before.captions, after.captions);
    assert_eq!((changes.len(), captions), (1, (5 * images_before, 5 * (images_before - 1))));

    // A later coordinator needs no --accept-changes, and a run with a fault after the change equals
    // the run without.
    replace_in_file(
        &config,
        &workspace.path("run").display().to_string(),
        &workspace.path("repeated").display().to_string(),
    );
    let coordinator = Coordinator::start_with(&workspace, &config, "http", &["--accept-changes"]);
    let worker = coordinator.start_worker(&workspace, 0);
    wait_for("later steps", || (coordinator.status()["step"].as_u64()? > step + 30).then_some(()));
    drop(worker);
    drop(coordinator);
    let coordinator = Coordinator::start(&workspace, &config);
    assert!(coordinator.start_worker(&workspace, 0).succeeds() && coordinator.process.succeeds());
    assert_eq!(workspace.journal("repeated").data_changes().unwrap().len(), 1);
    assert!(workspace.parameters("run") == workspace.parameters("repeated"));
}
