//! Settings that are changed while a run is under way.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use test_support::{Coordinator, Process, Workspace, command, error_line, run, wait_for};

const STAGES: &str = "stages:
  - name: xe
    objective: cross_entropy
    steps: STEPS
    batch: 12
    checkpoint_every: 20
    optimizer: { learning_rate: 0.001 }
";

/// What a run file says besides its name, output, models and stages.
fn head(workspace: &Workspace) -> String {
    let folder = workspace.path("").display().to_string();
    format!(
        "workers: {{ min: 1, max: 2 }}\nseed: 11\n\
         data:\n  karpathy: {{ annotations: {folder}world/dataset.json, images: {folder}world/images }}\n\
         vocabulary: corpus\ndecoding: {{ beams: 2, max_length: 8 }}\ncontrol: {{ heartbeat_timeout: 2 }}\n"
    )
}

/// Writes a run of so many steps of teacher forcing.
fn run_file(workspace: &Workspace, steps: u32) -> PathBuf {
    let text = format!(
        "name: test\noutput: {}\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n{}{}",
        workspace.path("run").display(),
        head(workspace),
        STAGES.replace("STEPS", &steps.to_string())
    );
    let path = workspace.path("run.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

fn replace(run_file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(run_file).unwrap();
    assert!(text.contains(from), "{from}");
    std::fs::write(run_file, text.replace(from, to)).unwrap();
}

/// Serves a run file that is refused; the list of what differs, and the line at the end.
fn refused(run_file: &Path, more: &[&str]) -> (String, String) {
    let config = run_file.to_string_lossy();
    let arguments = ["serve", "--config", &config, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let output = run("coordinator", &[&arguments, more].concat());
    (String::from_utf8_lossy(&output.stderr).into_owned(), error_line(&output))
}

fn count(journal: &Connection, condition: &str) -> i64 {
    journal.query_row(&format!("SELECT count(*) FROM steps WHERE {condition}"), [], |row| row.get(0)).unwrap()
}

/// Waits until the state of this step, or of a later one, is on disk.
fn wait_for_checkpoint(workspace: &Workspace, step: i64) {
    let journal = workspace.journal("run");
    let saved = || journal.query_row("SELECT max(step) FROM checkpoints", [], |row| row.get::<_, Option<i64>>(0));
    wait_for("a checkpoint", || (saved().unwrap() >= Some(step)).then_some(()));
}

#[test]
fn changed_settings_are_refused_with_a_list_until_they_are_accepted() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, 120);
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.worker(&workspace, 0);
    wait_for_checkpoint(&workspace, 20);
    drop(worker);
    drop(coordinator);

    replace(&config, "learning_rate: 0.001", "learning_rate: 0.0005");
    let (list, line) = refused(&config, &[]);
    assert!(list.contains("stages[0].optimizer.learning_rate: 0.001 -> 0.0005"), "{list}");
    assert!(line.contains("stages[0].optimizer.learning_rate") && line.contains("--accept-changes"), "{line}");

    // What makes another run is refused in any case; the lines for a new run make one.
    replace(&config, "seed: 11", "seed: 12");
    let (list, line) = refused(&config, &["--accept-changes"]);
    assert!(list.contains("seed: 11 -> 12") && line.contains("another seed"), "{list}");
    let recipe = list
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("name:"))
        .take_while(|line| line.starts_with(' '));
    let recipe: String = recipe.map(|line| format!("{}\n", line.trim_start())).collect();
    let stages = STAGES.replace("STEPS", "5");
    let text = format!("{}{recipe}{}", head(&workspace), stages.strip_prefix("stages:\n").unwrap());
    let new = workspace.path("new.yaml");
    std::fs::write(&new, text).unwrap();
    let validated = run("coordinator", &["validate", "--config", &new.to_string_lossy()]);
    assert!(validated.status.success(), "{recipe}{validated:?}");
    replace(&config, "seed: 12", "seed: 11");
    assert_eq!(workspace.events("run", "settings_changed"), Vec::<serde_json::Value>::new());

    let coordinator = Coordinator::start_with(&workspace, &config, "http", &["--accept-changes"]);
    assert!(coordinator.worker(&workspace, 0).finish().0 && coordinator.process.finish().0);
    let changed = workspace.events("run", "settings_changed");
    assert_eq!(changed.len(), 1);
    assert!(changed[0]["step"].as_u64().unwrap() >= 20, "{}", changed[0]);
    let expected = serde_json::json!([{
        "key": "stages[0].optimizer.learning_rate", "old": 0.001, "new": 0.0005, "mutability": "next_step",
    }]);
    assert_eq!(changed[0]["changes"], expected);
    let journal = workspace.journal("run");
    let new = count(&journal, "generation > 1 AND learning_rate = 0.0005");
    assert_eq!(new, count(&journal, "generation > 1"));
    assert!(new >= 80, "{new} steps");
    assert_eq!(count(&journal, "generation = 1 AND learning_rate <> 0.001"), 0);
}

/// A coordinator on this port, once it listens.
fn serve(workspace: &Workspace, run_file: &Path, port: u16, more: &[&str]) -> Process {
    let mut command = command("coordinator");
    let listen = format!("127.0.0.1:{port}");
    command.arg("serve").arg("--config").arg(run_file).args(["--listen", &listen, "--http", "127.0.0.1:0"]).args(more);
    let mut process = Process::start(&mut command, workspace.path("coordinator.log"));
    assert!(process.line().starts_with("listening"));
    process
}

#[test]
fn a_worker_that_stays_takes_the_settings_of_the_restarted_coordinator() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, 1_000_000);
    // One that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let coordinator = serve(&workspace, &config, port, &[]);
    let url = format!("http://127.0.0.1:{port}");
    let mut join = command("worker");
    join.args(["join", "--coordinator", &url, "--rank", "0", "--threads", "1"]);
    let mut worker = Process::start(&mut join, workspace.path("worker.log"));
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let source = || -> String {
        let query = "SELECT source FROM generations ORDER BY number DESC LIMIT 1";
        journal.query_row(query, [], |row| row.get(0)).unwrap()
    };
    wait_for("steps", || (count(&journal, "step > 25") > 0).then_some(()));

    // It keeps its state, and learns at the new rate.
    drop(coordinator);
    replace(&config, "learning_rate: 0.001", "learning_rate: 0.0005");
    let coordinator = serve(&workspace, &config, port, &["--accept-changes"]);
    wait_for("steps at the new rate", || (count(&journal, "learning_rate = 0.0005") > 5).then_some(()));
    assert_eq!(source(), "rank 0");
    let old = count(&journal, "learning_rate = 0.001");
    assert_eq!(count(&journal, "generation = 1"), old);
    assert!(worker.log().contains("continuing with the coordinator's new settings"), "{}", worker.log());

    // A setting of data loading takes effect only when data are loaded again: from the last
    // checkpoint.
    wait_for_checkpoint(&workspace, 20);
    drop(coordinator);
    replace(&config, "data:\n", "data:\n  skip_corrupt: true\n");
    let coordinator = serve(&workspace, &config, port, &["--accept-changes"]);
    wait_for("steps after loading", || (count(&journal, "generation = 3") > 0).then_some(()));
    assert!(source().starts_with("checkpoint 0-xe-"), "{}", source());
    assert!(worker.log().contains("loading data and models again"), "{}", worker.log());
    assert!(!worker.ended());
    drop(coordinator);
}

/// Edits the images of the world's training split.
fn edit_training_images(workspace: &Workspace, edit: impl FnOnce(&mut Vec<serde_json::Value>)) {
    let path = workspace.path("world/dataset.json");
    let mut dataset: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let images = dataset["images"].as_array_mut().unwrap();
    let (mut training, mut others) = images.drain(..).partition::<Vec<_>, _>(|image| image["split"] == "train");
    edit(&mut training);
    training.append(&mut others);
    *images = training;
    std::fs::write(path, dataset.to_string()).unwrap();
}

fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-r").args([from, to]).status().unwrap();
    assert!(copied.success());
}

#[test]
fn mended_training_data_are_trained_on_from_a_new_epoch_on() {
    const STEPS: u32 = 240;
    let workspace = Workspace::new();
    edit_training_images(&workspace, |images| {
        images[0]["sentences"][0] = serde_json::json!({ "raw": "a zebra", "tokens": ["a", "zebra"] });
    });
    let config = run_file(&workspace, STEPS);
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.worker(&workspace, 0);
    wait_for_checkpoint(&workspace, 40);
    drop(worker);
    drop(coordinator);

    // One image is taken out, and with it a word; a caption of another is corrected.
    let mut before = 0;
    edit_training_images(&workspace, |images| {
        before = images.len() as u64;
        images.remove(0);
        images[0]["sentences"][0] = serde_json::json!({ "raw": "a corrected caption", "tokens": [] });
    });
    let coordinator = Coordinator::start(&workspace, &config);
    let mut worker = coordinator.worker(&workspace, 0);
    wait_for("the worker's end", || worker.ended().then_some(()));
    let log = worker.log();
    assert_eq!(worker.exit().0, Some(1));
    let counts = format!("{} images and {} captions", before - 1, 5 * (before - 1));
    assert!(log.contains("training data differ") && log.contains(&counts) && log.contains("--accept-changes"), "{log}");
    drop(coordinator);
    copy(&workspace.path("run"), &workspace.path("again"));

    let coordinator = Coordinator::start_with(&workspace, &config, "http", &["--accept-changes"]);
    assert!(coordinator.worker(&workspace, 0).finish().0 && coordinator.process.finish().0);
    let audit = run("coordinator", &["audit", "--config", &config.to_string_lossy(), "--json"]);
    let audit: serde_json::Value = serde_json::from_slice(&audit.stdout).unwrap();
    assert_eq!((&audit["clean"], &audit["finished"]), (&true.into(), &true.into()));
    let step = audit["exchanges"][0]["step"].as_u64().unwrap();
    assert!(step >= 40 && step.is_multiple_of(20), "{audit}");
    let exchanged = serde_json::json!([{
        "stage": 0, "name": "xe", "step": step, "images_before": before, "images_after": before - 1,
        "captions_before": 5 * before, "captions_after": 5 * (before - 1),
    }]);
    assert_eq!(audit["exchanges"], exchanged);
    // Epochs of the old length, the last of them cut off, then epochs of the new one.
    let epochs = |samples: u64, length: u64| {
        let whole = std::iter::repeat_n(length, (samples / length) as usize);
        whole.chain((!samples.is_multiple_of(length)).then_some(samples % length))
    };
    let (old, new) = (12 * step, 12 * (u64::from(STEPS) - step));
    let expected: Vec<u64> = epochs(old, 5 * before).chain(epochs(new, 5 * (before - 1))).collect();
    let found = audit["epochs"].as_array().unwrap().iter().map(|epoch| epoch["committed"].as_u64().unwrap());
    assert_eq!(found.collect::<Vec<_>>(), expected);
    let changed = &workspace.events("run", "data_changed")[0];
    assert_eq!(changed["captions_before_and_after"], serde_json::json!([5 * before, 5 * (before - 1)]));

    // It is the same run when a fault follows the change: one that comes later needs no leave.
    replace(&config, &workspace.path("run").display().to_string(), &workspace.path("again").display().to_string());
    let coordinator = Coordinator::start_with(&workspace, &config, "http", &["--accept-changes"]);
    let worker = coordinator.worker(&workspace, 0);
    wait_for("later steps", || (coordinator.status()["step"].as_u64()? > step + 30).then_some(()));
    drop(worker);
    drop(coordinator);
    let coordinator = Coordinator::start(&workspace, &config);
    assert!(coordinator.worker(&workspace, 0).finish().0 && coordinator.process.finish().0);
    assert_eq!(workspace.events("again", "data_changed").len(), 1);
    assert!(workspace.parameters("run") == workspace.parameters("again"));
}
