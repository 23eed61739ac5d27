//! The identity of runs and checkpoints: workers that outlive a run join the next run as new
//! workers, and a checkpoint is used only under its name and with its content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use test_support::{Coordinator, Process, Workspace, command, error_line, run, run_to_completion, wait_for};

/// Starts a coordinator on this port, and waits until it listens.
fn serve(workspace: &Workspace, run_file: &Path, port: u16) -> Process {
    let mut command = command("coordinator");
    let listen = format!("127.0.0.1:{port}");
    command.arg("serve").arg("--config").arg(run_file).args(["--listen", &listen, "--http", "127.0.0.1:0"]);
    let mut process = Process::start(&mut command, workspace.path("coordinator.log"));
    assert!(process.read_line().starts_with("listening"));
    process
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start_worker(workspace: &Workspace, port: u16, worker_id: u32) -> Process {
    let (url, worker_id) = (format!("http://127.0.0.1:{port}"), worker_id.to_string());
    let mut join = command("worker");
    join.args(["join", "--coordinator", &url, "--rank", &worker_id, "--threads", "1"]);
    Process::start(&mut join, workspace.path(&format!("worker-{worker_id}.log")))
}

/// Writes the run file of a run with two workers that does not finish during a test.
fn long_run(workspace: &Workspace) -> PathBuf {
    let path = workspace.run_file("first", 2, "control: { heartbeat_timeout: 3 }\n");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("steps: 6, batch: 12, micro_batch: 4", "steps: 1000000, batch: 12")).unwrap();
    path
}

/// The files below a folder, with the times of their last modification.
fn modification_times(folder: &Path) -> BTreeMap<PathBuf, std::time::SystemTime> {
    let mut times = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            times.extend(modification_times(&entry.path()));
        } else {
            times.insert(entry.path(), entry.metadata().unwrap().modified().unwrap());
        }
    }
    times
}

/// Kills the coordinator of a run and starts that of a second run at the same address. Checks that
/// the two workers of the first run compute the second run as new workers do. `second_text` makes
/// the run file of the second run from that of the first.
fn check_workers_of_an_ended_run(second_text: impl FnOnce(&str) -> String) {
    let workspace = Workspace::new();
    let first_run_file = long_run(&workspace);
    let port = free_port();
    let coordinator = serve(&workspace, &first_run_file, port);
    let workers = [0, 1].map(|worker_id| start_worker(&workspace, port, worker_id));
    let journal = wait_for("a journal", || workspace.try_journal("first"));
    let has_trained =
        || journal.steps().unwrap().iter().any(|step| step.position.stage == 1 && step.position.step > 10);
    wait_for("steps", || has_trained().then_some(()));
    drop(coordinator);
    drop(journal);

    let text = second_text(&std::fs::read_to_string(&first_run_file).unwrap());
    let second_run_file = workspace.path("second.yaml");
    std::fs::write(&second_run_file, &text).unwrap();
    let coordinator = serve(&workspace, &second_run_file, port);
    wait_for("both workers", || {
        let workers = workspace.try_journal("second")?.attached_workers().unwrap();
        (workers.len() >= 2).then_some(())
    });
    // The workers finish saves of the first run before they join the second.
    let times_before = modification_times(&workspace.path("first/checkpoints"));
    for worker in workers {
        assert!(worker.log().is_empty() || !worker.log().contains("panicked"));
        assert!(worker.succeeds());
    }
    assert!(coordinator.succeeds());
    assert_eq!(modification_times(&workspace.path("first/checkpoints")), times_before);

    let new_workers = workspace.path("new-workers.yaml");
    std::fs::write(&new_workers, text.replace("/second\n", "/new-workers\n")).unwrap();
    run_to_completion(&workspace, &new_workers, 2);
    assert!(workspace.parameters("second") == workspace.parameters("new-workers"));
    let learning_rates =
        |name: &str| workspace.steps(name).iter().map(|step| step.learning_rate.unwrap()).collect::<Vec<f64>>();
    assert_eq!(learning_rates("second"), learning_rates("new-workers"));
    let ids = ["first", "second", "new-workers"].map(|name| workspace.journal(name).run_id().unwrap());
    assert!(ids.iter().all(|id| id.len() == 32) && ids[0] != ids[1] && ids[1] != ids[2], "{ids:?}");
}

#[test]
fn workers_of_an_ended_run_join_another_run_as_new_workers() {
    check_workers_of_an_ended_run(|text| {
        text.replace("/first\n", "/second\n")
            .replace("seed: 11", "seed: 12")
            .replace("learning_rate: 1.0e-3", "learning_rate: 7.0e-4")
            .replace("steps: 1000000", "steps: 6")
    });
}

#[test]
fn workers_of_an_ended_run_do_not_keep_their_state_in_a_run_with_the_same_settings() {
    // With the state of the first run, it would start at about step 10 of the second stage.
    check_workers_of_an_ended_run(|text| text.replace("/first\n", "/second\n").replace("steps: 1000000", "steps: 40"));
}

/// Trains until there are this many checkpoints, and stops the run. Returns the names of the
/// checkpoints, in order.
fn train_and_stop(workspace: &Workspace, run_file: &Path, checkpoint_count: usize) -> Vec<String> {
    let coordinator = Coordinator::start(workspace, run_file);
    let worker = coordinator.start_worker(workspace, 0);
    let names = || {
        let entries = std::fs::read_dir(workspace.path("run/checkpoints")).ok()?;
        let sealed = entries.flatten().filter(|entry| entry.path().join("checkpoint.json").is_file());
        let mut names: Vec<String> = sealed.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        (names.len() >= checkpoint_count).then_some(names)
    };
    wait_for("checkpoints", names);
    coordinator.process.terminate();
    assert!(coordinator.process.succeeds() && worker.succeeds());
    names().unwrap()
}

#[test]
fn a_renamed_checkpoint_is_not_used() {
    let workspace = Workspace::new();
    let config = workspace.run_file_with_checkpoints("run");
    let names = train_and_stop(&workspace, &config, 4);
    let folder = workspace.path("run/checkpoints");
    let [.., third_last, second_last, last] = &names[..] else { panic!("{names:?}") };
    // Swaps the names of the last two checkpoints. Their content is unchanged.
    let temporary = "temporary".to_owned();
    for (from, to) in [(last, &temporary), (second_last, last), (&temporary, second_last)] {
        std::fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    let coordinator = Coordinator::start(&workspace, &config);
    assert!(coordinator.start_worker(&workspace, 0).succeeds() && coordinator.process.succeeds());
    let damaged = workspace.events("run", "checkpoint_damaged");
    let reasons: Vec<&str> = damaged.iter().map(|event| event["reason"].as_str().unwrap()).collect();
    assert!(reasons.len() == 2, "{damaged:?}");
    assert!(reasons.iter().any(|reason| reason.contains(&format!("saved as {second_last}"))), "{reasons:?}");
    let last_generation = workspace.journal("run").generations().unwrap().pop().unwrap();
    assert_eq!(last_generation.source, format!("checkpoint {third_last}"));
    run_to_completion(&workspace, &workspace.run_file_with_checkpoints("uninterrupted"), 1);
    assert!(workspace.parameters("run") == workspace.parameters("uninterrupted"));
}

#[test]
fn commands_refuse_a_checkpoint_that_was_changed_or_has_no_seal() {
    let workspace = Workspace::new();
    let config = workspace.run_file_with_checkpoints("run");
    let names = train_and_stop(&workspace, &config, 2);
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
    let assert_refused = |expected: &str| {
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
    assert_refused("captioner.safetensors is not what was written");
    std::fs::write(&file, content).unwrap();
    let seal = checkpoint.join("checkpoint.json");
    std::fs::rename(&seal, workspace.path("seal")).unwrap();
    assert_refused("");
    std::fs::rename(workspace.path("seal"), &seal).unwrap();
    for (program, command) in commands {
        assert!(run(program, command).status.success(), "{command:?}");
    }
}
