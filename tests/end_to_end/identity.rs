//! Runs that follow each other at one address: nothing of one gets into another.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use test_support::{Coordinator, Process, Workspace, command, complete, error_line, run, wait_for};

/// A coordinator on this port, once it listens.
fn serve(workspace: &Workspace, run_file: &Path, port: u16) -> Process {
    let mut command = command("coordinator");
    let listen = format!("127.0.0.1:{port}");
    command.arg("serve").arg("--config").arg(run_file).args(["--listen", &listen, "--http", "127.0.0.1:0"]);
    let mut process = Process::start(&mut command, workspace.path("coordinator.log"));
    assert!(process.line().starts_with("listening"));
    process
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn worker(workspace: &Workspace, port: u16, rank: u32) -> Process {
    let (url, rank) = (format!("http://127.0.0.1:{port}"), rank.to_string());
    let mut join = command("worker");
    join.args(["join", "--coordinator", &url, "--rank", &rank, "--threads", "1"]);
    Process::start(&mut join, workspace.path(&format!("worker-{rank}.log")))
}

/// A run that does not end by itself, of two workers.
fn endless(workspace: &Workspace) -> PathBuf {
    let path = workspace.run_file("endless", 2, "control: { heartbeat_timeout: 3 }\n");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("steps: 6, batch: 12, micro_batch: 4", "steps: 1000000, batch: 12")).unwrap();
    path
}

/// The files below a folder, and when each was last written.
fn files(folder: &Path) -> BTreeMap<PathBuf, std::time::SystemTime> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), entry.metadata().unwrap().modified().unwrap());
        }
    }
    found
}

/// Two workers are left over from a run whose coordinator was killed. `next` makes the run file of another run from that run's,
/// which they do as if they were new.
fn left_over(next: impl FnOnce(&str) -> String) {
    let workspace = Workspace::new();
    let first = endless(&workspace);
    let port = free_port();
    let coordinator = serve(&workspace, &first, port);
    let workers = [0, 1].map(|rank| worker(&workspace, port, rank));
    let journal = wait_for("a journal", || workspace.try_journal("endless"));
    let steps = || journal.query_row("SELECT count(*) FROM steps WHERE stage = 1", [], |row| row.get::<_, i64>(0));
    wait_for("steps", || (steps().unwrap() > 10).then_some(()));
    drop(coordinator);
    drop(journal);

    let text = next(&std::fs::read_to_string(&first).unwrap());
    let second = workspace.path("second.yaml");
    std::fs::write(&second, &text).unwrap();
    let coordinator = serve(&workspace, &second, port);
    wait_for("both workers", || {
        workspace.try_journal("second")?;
        (workspace.events("second", "joined").len() >= 2).then_some(())
    });
    // What they were about to save of the first run they have saved before they came.
    let before = files(&workspace.path("endless/checkpoints"));
    for worker in workers {
        assert!(worker.log().is_empty() || !worker.log().contains("panicked"));
        assert!(worker.finish().0);
    }
    assert!(coordinator.finish().0);
    assert_eq!(files(&workspace.path("endless/checkpoints")), before);

    let alone = workspace.path("alone.yaml");
    std::fs::write(&alone, text.replace("/second\n", "/alone\n")).unwrap();
    complete(&workspace, &alone, 2);
    assert!(workspace.parameters("second") == workspace.parameters("alone"));
    let rates = |name: &str| -> Vec<f64> {
        let journal = workspace.journal(name);
        let mut rates = journal.prepare("SELECT learning_rate FROM steps ORDER BY stage, step").unwrap();
        rates.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(rates("second"), rates("alone"));
    let ids = ["endless", "second", "alone"].map(|name| {
        workspace.journal(name).query_row("SELECT id FROM run", [], |row| row.get::<_, String>(0)).unwrap()
    });
    assert!(ids.iter().all(|id| id.len() == 32) && ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
}

#[test]
fn workers_left_over_do_another_run_as_if_they_were_new() {
    left_over(|text| {
        text.replace("/endless\n", "/second\n")
            .replace("seed: 11", "seed: 12")
            .replace("learning_rate: 1.0e-3", "learning_rate: 7.0e-4")
            .replace("steps: 1000000", "steps: 6")
    });
}

#[test]
fn workers_left_over_do_not_take_a_run_of_the_same_settings_for_theirs() {
    // It would go on from step 10 or so of the second stage.
    left_over(|text| text.replace("/endless\n", "/second\n").replace("steps: 1000000", "steps: 40"));
}

/// Stops a run in good order, and hands over the names of its checkpoints, in order.
fn stopped_after(workspace: &Workspace, run_file: &Path, checkpoints: usize) -> Vec<String> {
    let coordinator = Coordinator::start(workspace, run_file);
    let worker = coordinator.worker(workspace, 0);
    let names = || {
        let entries = std::fs::read_dir(workspace.path("run/checkpoints")).ok()?;
        let sealed = entries.flatten().filter(|entry| entry.path().join("checkpoint.json").is_file());
        let mut names: Vec<String> = sealed.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        (names.len() >= checkpoints).then_some(names)
    };
    wait_for("checkpoints", names);
    coordinator.process.terminate();
    assert!(coordinator.process.finish().0 && worker.finish().0);
    names().unwrap()
}

#[test]
fn a_run_does_not_take_one_checkpoint_for_another() {
    let workspace = Workspace::new();
    let config = workspace.saving_run_file("run");
    let names = stopped_after(&workspace, &config, 4);
    let folder = workspace.path("run/checkpoints");
    let [.., other, before, last] = &names[..] else { panic!("{names:?}") };
    // Every byte of each is what was written.
    for (from, to) in [(last, &"aside".to_owned()), (before, last), (&"aside".to_owned(), before)] {
        std::fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    let coordinator = Coordinator::start(&workspace, &config);
    assert!(coordinator.worker(&workspace, 0).finish().0 && coordinator.process.finish().0);
    let damaged = workspace.events("run", "checkpoint_damaged");
    let reasons: Vec<&str> = damaged.iter().map(|event| event["reason"].as_str().unwrap()).collect();
    assert!(reasons.len() == 2, "{damaged:?}");
    assert!(reasons.iter().any(|reason| reason.contains(&format!("saved as {before}"))), "{reasons:?}");
    let source = |journal: &rusqlite::Connection| -> String {
        journal.query_row("SELECT source FROM generations ORDER BY number DESC", [], |row| row.get(0)).unwrap()
    };
    assert_eq!(source(&workspace.journal("run")), format!("checkpoint {other}"));
    complete(&workspace, &workspace.saving_run_file("alone"), 1);
    assert!(workspace.parameters("run") == workspace.parameters("alone"));
}

#[test]
fn commands_use_a_checkpoint_only_as_it_was_written() {
    let workspace = Workspace::new();
    let config = workspace.saving_run_file("run");
    let names = stopped_after(&workspace, &config, 2);
    let checkpoint = workspace.path("run/checkpoints").join(names.last().unwrap());
    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let [checkpoint_path, image, config, exported] =
        [checkpoint.clone(), image, config, workspace.path("exported")].map(|path| path.to_string_lossy().into_owned());
    let next = workspace.run_file("next", 1, "");
    let text = std::fs::read_to_string(&next).unwrap();
    let weights = format!("weights: {checkpoint_path}");
    std::fs::write(&next, text.replace("preset: tiny", &weights)).unwrap();
    let next = next.to_string_lossy().into_owned();
    let commands: [(&str, &[&str]); 4] = [
        ("worker", &["caption", "--checkpoint", &checkpoint_path, "--threads", "1", &image]),
        ("worker", &["evaluate", "--config", &config, "--checkpoint", &checkpoint_path, "--threads", "1"]),
        ("worker", &["export", "--from", &checkpoint_path, "--to", &exported]),
        ("coordinator", &["validate", "--config", &next]),
    ];
    let refused = |expected: &str| {
        for (program, command) in commands {
            let line = error_line(&run(program, command));
            assert!(line.contains(expected) && line.contains(names.last().unwrap()), "{command:?}: {line}");
        }
    };
    let file = checkpoint.join("captioner.safetensors");
    let content = std::fs::read(&file).unwrap();
    let mut flipped = content.clone();
    *flipped.last_mut().unwrap() ^= 1;
    std::fs::write(&file, flipped).unwrap();
    refused("captioner.safetensors is not what was written");
    std::fs::write(&file, content).unwrap();
    let seal = checkpoint.join("checkpoint.json");
    std::fs::rename(&seal, workspace.path("seal")).unwrap();
    refused("");
    std::fs::rename(workspace.path("seal"), &seal).unwrap();
    for (program, command) in commands {
        assert!(run(program, command).status.success(), "{command:?}");
    }
}
