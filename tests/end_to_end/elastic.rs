//! Workers that leave, damaged checkpoints and full disks: the run continues, and trains on each
//! sample once.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use test_support::{Coordinator, Process, Workspace, run, wait_for};

/// Writes a run file with many small cross-entropy steps, for up to three workers. `more_yaml` is
/// appended.
fn run_file(workspace: &Workspace, name: &str, steps: u64, more_yaml: &str) -> PathBuf {
    let folder = workspace.path("");
    let (folder, optimizer) = (folder.display(), "optimizer: { learning_rate: 1.0e-3 }");
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}/{name}\nworkers: {{ min: 1, max: 3 }}\n\
         data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n\
         vocabulary: corpus\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n\
         decoding: {{ beams: 2, max_length: 8 }}\nstages:\n  \
         - {{ name: xe, objective: cross_entropy, steps: {steps}, batch: 12, checkpoint_every: 20, {optimizer} }}\n{more_yaml}"
    );
    let path = workspace.path(&format!("{name}.yaml"));
    std::fs::write(&path, text).unwrap();
    path
}

fn audit(run_file: &Path) -> Value {
    let output = run("coordinator", &["audit", "--config", &run_file.to_string_lossy(), "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Waits until this number of members trains and the stage has reached this step.
fn wait_for_step(coordinator: &Coordinator, members: usize, step: u64) {
    wait_for("steps", || {
        let status = coordinator.status();
        let is_training = status["members"].as_array().unwrap().len() == members && status["state"] == "running";
        (is_training && status["step"].as_u64().unwrap() >= step).then_some(())
    });
}

/// Waits until a process succeeds. Returns the rest of its stdout.
fn stdout_of(process: Process) -> String {
    let (succeeded, printed) = process.finish();
    assert!(succeeded);
    printed
}

#[test]
fn a_terminated_worker_leaves_after_the_step_in_flight() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 150, "");
    let coordinator = Coordinator::start(&workspace, &config);
    let [first, second] = [0, 1].map(|worker_id| coordinator.start_worker(&workspace, worker_id));
    wait_for_step(&coordinator, 2, 10);
    second.terminate();
    assert!(stdout_of(second).contains("left rank=1"));
    assert!(stdout_of(first).contains("finished rank=0"));
    assert!(coordinator.process.succeeds());
    let audit = audit(&config);
    assert_eq!((&audit["clean"], &audit["samples"]["committed"]), (&true.into(), &(150 * 12).into()));
    let given_up = |generation: &Value| generation["given_up"].as_u64().unwrap();
    assert_eq!(audit["generations"].as_array().unwrap().iter().map(given_up).sum::<u64>(), 0);
    assert_eq!(workspace.events("run", "left").len(), 2);
    assert_eq!(workspace.events("run", "lost"), Vec::<Value>::new());
    assert_eq!(workspace.journal("run").history_moves().unwrap().len(), 0);
}

#[test]
fn the_last_worker_saves_its_state_before_it_leaves() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 150, "");
    let coordinator = Coordinator::start(&workspace, &config);
    let first = coordinator.start_worker(&workspace, 0);
    wait_for_step(&coordinator, 1, 25);
    first.terminate();
    assert!(stdout_of(first).contains("left rank=0"));
    let status = coordinator.status();
    assert_eq!(status["state"], "waiting");
    let (step, reason) = (status["step"].as_u64().unwrap(), status["reason"].as_str().unwrap());
    assert!(reason.contains("0 of at least 1 workers"), "{reason}");
    assert!(step >= 25 && workspace.path("run/checkpoints").join(format!("0-xe-{step:08}")).is_dir(), "step {step}");
    assert!(stdout_of(coordinator.start_worker(&workspace, 0)).contains("finished rank=0"));
    assert!(coordinator.process.succeeds());
    let audit = audit(&config);
    assert_eq!((&audit["clean"], &audit["samples"]["committed"]), (&true.into(), &(150 * 12).into()));
    let moves = workspace.journal("run").history_moves().unwrap();
    assert!(moves.iter().all(|moved| moved.to > moved.from), "{moves:?}");
}

#[test]
fn a_damaged_checkpoint_is_recorded_and_the_previous_one_is_used() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 150, "");
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.start_worker(&workspace, 0);
    let checkpoint_names = || -> Vec<String> {
        let checkpoints = workspace.journal("run").kept_checkpoints().unwrap();
        checkpoints.into_iter().map(|checkpoint| checkpoint.name).collect()
    };
    wait_for("two checkpoints", || {
        (coordinator.status()["step"].as_u64() > Some(45) && checkpoint_names().len() == 2).then_some(())
    });
    // No member is left that holds the state.
    drop(worker);
    drop(coordinator);
    let names = checkpoint_names();
    let file = workspace.path("run/checkpoints").join(&names[1]).join("optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let coordinator = Coordinator::start(&workspace, &config);
    assert!(stdout_of(coordinator.start_worker(&workspace, 0)).contains("finished rank=0"));
    assert!(coordinator.process.succeeds());
    let damaged = workspace.events("run", "checkpoint_damaged");
    assert_eq!((damaged.len(), &damaged[0]["checkpoint"]), (1, &names[1].clone().into()));
    assert!(damaged[0]["reason"].as_str().unwrap().contains("optimizer.safetensors"), "{}", damaged[0]);
    let generations = workspace.journal("run").generations().unwrap();
    let source = format!("checkpoint {}", names[0]);
    assert_eq!(generations.iter().filter(|generation| generation.source == source).count(), 1);
    assert_eq!(audit(&config)["clean"], true);
}

/// A file system of limited size, which is unmounted when this is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// Mounts a file system of this size; none if this process may not mount one.
    fn mount(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mount.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: the test needs a small file system, and this process may not mount one: {mount:?}");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_full_disk_pauses_the_run_until_space_is_free() {
    let Some(disk) = SmallDisk::mount(64 << 20) else { return };
    let filler = disk.0.path().join("filler");
    // The rest of the disk is too small for a checkpoint.
    std::fs::write(&filler, vec![1; (64 << 20) - (128 << 10)]).unwrap();
    let workspace = Workspace::new();
    let checkpoints = format!("checkpoints: {{ url: \"file://{}/checkpoints\", keep: 1 }}\n", disk.0.path().display());
    let config = run_file(&workspace, "run", 60, &checkpoints);
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.start_worker(&workspace, 0);
    let reason = wait_for("a pause", || {
        let status = coordinator.status();
        (status["state"] == "paused").then(|| status["reason"].as_str().unwrap().to_owned())
    });
    assert!(reason.contains("cannot save 0-xe-00000020") && reason.contains("no space is left"), "{reason}");
    std::fs::remove_file(filler).unwrap();
    assert!(stdout_of(worker).contains("finished rank=0"));
    assert!(coordinator.process.succeeds());
    assert_eq!((workspace.events("run", "save_failed").len(), workspace.events("run", "saved_again").len()), (1, 1));
    assert_eq!(audit(&config)["clean"], true);
}
