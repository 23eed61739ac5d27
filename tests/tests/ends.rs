//! How programs end: the exit codes of docs/operations.md, and what they say.

use std::path::{Path, PathBuf};

use dico_tests::{Coordinator, Place, Process, command, error_line, run, wait_for};

/// A run of many small steps, too long to be over before it is asked to end.
fn long_run(place: &Place) -> PathBuf {
    let folder = place.path("");
    let folder = folder.display();
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}/run\nworkers: {{ min: 1, max: 2 }}\n\
         data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n\
         vocabulary: corpus\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\nstages:\n  \
         - {{ name: xe, objective: cross_entropy, steps: 100000, batch: 12, optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
    );
    let path = place.path("run.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Starts a run with two workers that have a status of their own for leaving, and waits until it trains.
fn train(place: &Place) -> (Coordinator, [Process; 2]) {
    let coordinator = Coordinator::start(place, &long_run(place));
    let workers = [0, 1].map(|rank| coordinator.worker_with(place, rank, &["--left-status", "75"]));
    wait_for("steps of both workers", || {
        let status = coordinator.status();
        let members = status["members"].as_array().unwrap().len();
        (members == 2 && status["state"] == "running" && status["step"].as_u64() > Some(3)).then_some(())
    });
    (coordinator, workers)
}

/// A worker has left in good order: with its own status, and without an error.
fn left(worker: Process, log: &Path) {
    let (code, printed) = worker.exit();
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(code, Some(75), "{log}");
    assert!(printed.contains("left rank="), "{printed}");
    assert!(!log.contains("error"), "{log}");
}

fn control(coordinator: &Coordinator, arguments: &[&str]) {
    let output = run("coordinator", &[arguments, &["--coordinator", &coordinator.url]].concat());
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_drained_worker_leaves_in_good_order_and_so_do_all_when_the_coordinator_stops() {
    let place = Place::new();
    let (coordinator, [first, second]) = train(&place);
    control(&coordinator, &["drain", "1"]);
    left(second, &place.path("worker-1.log"));
    control(&coordinator, &["stop"]);
    left(first, &place.path("worker-0.log"));
    assert_eq!(coordinator.process.exit().0, Some(0));
}

#[test]
fn all_leave_in_good_order_when_the_coordinator_gets_a_signal() {
    let place = Place::new();
    let (coordinator, [first, second]) = train(&place);
    coordinator.process.terminate();
    left(first, &place.path("worker-0.log"));
    left(second, &place.path("worker-1.log"));
    assert_eq!(coordinator.process.exit().0, Some(0));
}

#[test]
fn a_watch_ends_with_the_run_although_the_coordinator_goes_first() {
    let place = Place::new();
    let run_file = place.run_file("run", 1, "");
    let coordinator = Coordinator::start(&place, &run_file);
    // So far apart that the run is over between two looks: the last one comes when it is.
    let watch = ["watch", "--plain", "--coordinator", &coordinator.url, "--interval"];
    let mut watches = ["50", "60"].map(|interval| {
        Process::start(command("coordinator").args(watch).arg(interval), place.path(&format!("watch-{interval}.log")))
    });
    let first: Vec<String> = watches.iter_mut().map(Process::line).collect();
    assert!(first.iter().all(|line| line.contains("waiting")), "{first:?}");
    let (worker_ended, _) = coordinator.worker(&place, 0).finish();
    assert!(worker_ended);
    for watch in watches {
        let (code, printed) = watch.exit();
        assert_eq!(code, Some(0));
        assert!(printed.lines().last().is_some_and(|line| line.contains("finished")), "{printed}");
    }
    assert_eq!(coordinator.process.exit().0, Some(0));

    let config = run_file.to_string_lossy();
    let events = |more: &[&str]| run("coordinator", &[&["events", "--config", &*config], more].concat());
    let told = String::from_utf8(events(&[]).stdout).unwrap();
    for kind in ["joined", "generation", "checkpoint", "evaluation", "finished"] {
        assert!(told.lines().any(|line| line.split_whitespace().nth(3) == Some(kind)), "no {kind} in {told}");
    }
    let only = String::from_utf8(events(&["--kind", "evaluation", "--json"]).stdout).unwrap();
    let only: Vec<serde_json::Value> = only.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!only.is_empty() && only.iter().all(|event| event["kind"] == "evaluation"), "{only:?}");
    let unknown = events(&["--kind", "evaluated"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("checkpoint_damaged"), "{unknown:?}");
}

#[test]
fn what_fails_says_so_in_one_line_and_with_status_1() {
    let audit = run("coordinator", &["audit", "--state", "nowhere"]);
    assert_eq!(audit.status.code(), Some(1));
    assert!(error_line(&audit).contains("nowhere"));
    assert_eq!(run("worker", &["join", "--no-such-option"]).status.code(), Some(2));
}
