//! Workers that join and leave, states that cannot be read, disks that are full: the run continues,
//! and each sample is trained on once.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use test_support::{Coordinator, Process, Workspace, run, wait_for};

/// A run that lasts for a while: many small steps of teacher forcing.
fn run_file(workspace: &Workspace, name: &str, steps: u64, more: &str) -> PathBuf {
    let folder = workspace.path("");
    let (folder, optimizer) = (folder.display(), "optimizer: { learning_rate: 1.0e-3 }");
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}/{name}\nworkers: {{ min: 1, max: 3 }}\n\
         data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n\
         vocabulary: corpus\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n\
         decoding: {{ beams: 2, max_length: 8 }}\nstages:\n  \
         - {{ name: xe, objective: cross_entropy, steps: {steps}, batch: 12, checkpoint_every: 20, {optimizer} }}\n{more}"
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

/// Waits until a stage has come so far.
fn trained(coordinator: &Coordinator, members: usize, step: u64) {
    wait_for("steps", || {
        let status = coordinator.status();
        let there = status["members"].as_array().unwrap().len() == members && status["state"] == "running";
        (there && status["step"].as_u64().unwrap() >= step).then_some(())
    });
}

fn ended_well(process: Process) -> String {
    let (well, printed) = process.finish();
    assert!(well);
    printed
}

#[test]
fn a_worker_that_is_asked_to_end_leaves_after_the_step_in_flight() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 150, "");
    let coordinator = Coordinator::start(&workspace, &config);
    let [stays, leaves] = [0, 1].map(|rank| coordinator.worker(&workspace, rank));
    trained(&coordinator, 2, 10);
    leaves.terminate();
    assert!(ended_well(leaves).contains("left rank=1"));
    assert!(ended_well(stays).contains("finished rank=0"));
    assert!(coordinator.process.finish().0);
    let audit = audit(&config);
    assert_eq!((&audit["clean"], &audit["samples"]["committed"]), (&true.into(), &(150 * 12).into()));
    let given_up = |generation: &Value| generation["given_up"].as_u64().unwrap();
    assert_eq!(audit["generations"].as_array().unwrap().iter().map(given_up).sum::<u64>(), 0);
    assert_eq!(workspace.events("run", "left").len(), 2);
    for kind in ["lost", "rollback", "adopted"] {
        assert_eq!(workspace.events("run", kind), Vec::<Value>::new(), "{kind}");
    }
}

#[test]
fn the_last_worker_saves_what_only_it_holds_before_it_leaves() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 150, "");
    let coordinator = Coordinator::start(&workspace, &config);
    let first = coordinator.worker(&workspace, 0);
    trained(&coordinator, 1, 25);
    first.terminate();
    assert!(ended_well(first).contains("left rank=0"));
    let status = coordinator.status();
    assert_eq!(status["state"], "waiting");
    let (step, reason) = (status["step"].as_u64().unwrap(), status["reason"].as_str().unwrap());
    assert!(reason.contains("0 of at least 1 workers"), "{reason}");
    assert!(step >= 25 && workspace.path("run/checkpoints").join(format!("0-xe-{step:08}")).is_dir(), "step {step}");
    assert!(ended_well(coordinator.worker(&workspace, 0)).contains("finished rank=0"));
    assert!(coordinator.process.finish().0);
    let audit = audit(&config);
    assert_eq!((&audit["clean"], &audit["samples"]["committed"]), (&true.into(), &(150 * 12).into()));
    assert_eq!(workspace.events("run", "rollback"), Vec::<Value>::new());
}

#[test]
fn a_damaged_checkpoint_is_named_and_the_one_before_it_is_used() {
    let workspace = Workspace::new();
    let config = run_file(&workspace, "run", 150, "");
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.worker(&workspace, 0);
    let saved = || -> Vec<String> {
        let journal = workspace.journal("run");
        let mut names = journal.prepare("SELECT name FROM checkpoints WHERE deleted IS NULL ORDER BY step").unwrap();
        names.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    wait_for("two checkpoints", || {
        (coordinator.status()["step"].as_u64() > Some(45) && saved().len() == 2).then_some(())
    });
    // No survivor holds the state.
    drop(worker);
    drop(coordinator);
    let names = saved();
    let file = workspace.path("run/checkpoints").join(&names[1]).join("optimizer.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();

    let coordinator = Coordinator::start(&workspace, &config);
    assert!(ended_well(coordinator.worker(&workspace, 0)).contains("finished rank=0"));
    assert!(coordinator.process.finish().0);
    let damaged = workspace.events("run", "checkpoint_damaged");
    assert_eq!((damaged.len(), &damaged[0]["checkpoint"]), (1, &names[1].clone().into()));
    assert!(damaged[0]["reason"].as_str().unwrap().contains("optimizer.safetensors"), "{}", damaged[0]);
    let sources: i64 = workspace
        .journal("run")
        .query_row("SELECT count(*) FROM generations WHERE source = ?", [format!("checkpoint {}", names[0])], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(sources, 1);
    assert_eq!(audit(&config)["clean"], true);
}

/// A file system of so many bytes, gone with the test; none where this process may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if mount.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(folder));
        }
        eprintln!("SKIPPED: a full disk needs a file system that this process may not mount: {mount:?}");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_full_disk_pauses_the_run_until_there_is_room() {
    let Some(disk) = SmallDisk::mount(64 << 20) else { return };
    let hoard = disk.0.path().join("hoard");
    // What is left cannot hold a checkpoint.
    std::fs::write(&hoard, vec![1; (64 << 20) - (128 << 10)]).unwrap();
    let workspace = Workspace::new();
    let to = format!("checkpoints: {{ to: \"file://{}/checkpoints\", keep: 1 }}\n", disk.0.path().display());
    let config = run_file(&workspace, "run", 60, &to);
    let coordinator = Coordinator::start(&workspace, &config);
    let worker = coordinator.worker(&workspace, 0);
    let reason = wait_for("a pause", || {
        let status = coordinator.status();
        (status["state"] == "paused").then(|| status["reason"].as_str().unwrap().to_owned())
    });
    assert!(reason.contains("cannot save 0-xe-00000020") && reason.contains("room"), "{reason}");
    std::fs::remove_file(hoard).unwrap();
    assert!(ended_well(worker).contains("finished rank=0"));
    assert!(coordinator.process.finish().0);
    assert_eq!((workspace.events("run", "save_failed").len(), workspace.events("run", "saved_again").len()), (1, 1));
    assert_eq!(audit(&config)["clean"], true);
}
