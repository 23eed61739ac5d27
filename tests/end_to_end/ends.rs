//! How programs end: the exit codes of docs/operations.md, and what they say.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use test_support::{Coordinator, Process, Workspace, command, complete, error_line, run, wait_for};

/// A run of many small steps, too long to be over before it is asked to end.
fn long_run(workspace: &Workspace) -> PathBuf {
    let folder = workspace.path("");
    let folder = folder.display();
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}/run\nworkers: {{ min: 1, max: 2 }}\n\
         data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n\
         vocabulary: corpus\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\nstages:\n  \
         - {{ name: xe, objective: cross_entropy, steps: 100000, batch: 12, optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
    );
    let path = workspace.path("run.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// Starts a run with two workers that have a status of their own for leaving, and waits until it trains.
fn train(workspace: &Workspace) -> (Coordinator, [Process; 2]) {
    let coordinator = Coordinator::start(workspace, &long_run(workspace));
    let workers = [0, 1].map(|rank| coordinator.worker_with(workspace, rank, &["--left-status", "75"]));
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
    let workspace = Workspace::new();
    let (coordinator, [first, second]) = train(&workspace);
    control(&coordinator, &["drain", "1"]);
    left(second, &workspace.path("worker-1.log"));
    control(&coordinator, &["stop"]);
    left(first, &workspace.path("worker-0.log"));
    assert_eq!(coordinator.process.exit().0, Some(0));
}

#[test]
fn all_leave_in_good_order_when_the_coordinator_gets_a_signal() {
    let workspace = Workspace::new();
    let (coordinator, [first, second]) = train(&workspace);
    coordinator.process.terminate();
    left(first, &workspace.path("worker-0.log"));
    left(second, &workspace.path("worker-1.log"));
    assert_eq!(coordinator.process.exit().0, Some(0));
}

#[test]
fn a_watch_ends_with_the_run_although_the_coordinator_goes_first() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let coordinator = Coordinator::start(&workspace, &run_file);
    // So far apart that the run is over between two looks: the last one comes when it is.
    let watch = ["watch", "--plain", "--coordinator", &coordinator.url, "--interval"];
    let mut watches = ["50", "60"].map(|interval| {
        Process::start(
            command("coordinator").args(watch).arg(interval),
            workspace.path(&format!("watch-{interval}.log")),
        )
    });
    let first: Vec<String> = watches.iter_mut().map(Process::line).collect();
    assert!(first.iter().all(|line| line.contains("waiting")), "{first:?}");
    let (worker_ended, _) = coordinator.worker(&workspace, 0).finish();
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

/// Runs a program whose standard output goes nowhere: its status, and what it says of that.
fn run_into(stdout: Stdio, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(program).args(arguments).stdout(stdout).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{program} {arguments:?}: {said}");
    (output.status.code(), said)
}

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_full_or_closed_standard_output_is_no_panic() {
    let workspace = Workspace::new();
    let config = workspace.run_file("run", 1, "");
    complete(&workspace, &config, 1);
    let checkpoint = workspace.last_checkpoint("run");
    let image = std::fs::read_dir(workspace.path("world/images")).unwrap().next().unwrap().unwrap().path();
    let [config, checkpoint, image, world, html, logs, exported, drawn, references] = [
        config,
        checkpoint,
        image,
        workspace.path("world/dataset.json"),
        workspace.path("report.html"),
        workspace.path("logs"),
        workspace.path("exported"),
        workspace.path("drawn"),
        workspace.path("captions.json"),
    ]
    .map(|path| path.to_string_lossy().into_owned());
    std::fs::write(&references, r#"[{ "image_id": 1, "caption": "a red circle" }]"#).unwrap();
    let commands: [(&str, &[&str]); 13] = [
        ("coordinator", &["validate", "--config", &config]),
        ("coordinator", &["schema"]),
        ("coordinator", &["audit", "--config", &config]),
        ("coordinator", &["events", "--config", &config]),
        ("coordinator", &["report", "--config", &config, "--out", &html]),
        ("coordinator", &["tensorboard", "--config", &config, "--out", &logs]),
        ("coordinator", &["completions", "bash"]),
        ("worker", &["inspect", &world]),
        ("worker", &["synthesize", "--out", &drawn, "--images", "10", "--seed", "1"]),
        ("worker", &["caption", "--checkpoint", &checkpoint, "--threads", "1", &image]),
        ("worker", &["export", "--from", &checkpoint, "--to", &exported]),
        ("worker", &["score", "--candidates", &references, "--references", &references]),
        ("worker", &["evaluate", "--config", &config, "--checkpoint", &checkpoint, "--threads", "1"]),
    ];
    for (program, arguments) in commands {
        for made in [&html, &logs, &exported, &drawn] {
            _ = std::fs::remove_dir_all(made).or_else(|_| std::fs::remove_file(made));
        }
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (status, said) = run_into(full.into(), program, arguments);
        assert_eq!(status, Some(1), "{program} {arguments:?}: {said}");
        assert!(said.contains("standard output: No space left"), "{program} {arguments:?}: {said}");
        for made in [&html, &logs, &exported, &drawn] {
            _ = std::fs::remove_dir_all(made).or_else(|_| std::fs::remove_file(made));
        }
        let (status, said) = run_into(closed(), program, arguments);
        assert_eq!(status, Some(0), "{program} {arguments:?}: {said}");
    }
}

#[test]
fn a_run_does_not_depend_on_who_reads_what_it_says() {
    let workspace = Workspace::new();
    let config = workspace.run_file("run", 1, "");
    // A free port: where it listens cannot be read.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (listen, url) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let mut serve = command("coordinator");
    serve.arg("serve").arg("--config").arg(&config).args(["--listen", &listen, "--http", "127.0.0.1:0"]);
    let mut coordinator = serve.stdout(closed()).stderr(closed()).spawn().unwrap();
    let mut join = command("worker");
    join.args(["join", "--coordinator", &url, "--rank", "0", "--threads", "1"]);
    let worker = join.stdout(closed()).stderr(closed()).status().unwrap();
    assert_eq!((worker.code(), coordinator.wait().unwrap().code()), (Some(0), Some(0)));
    assert_eq!(workspace.events("run", "finished").len(), 1);
}

#[test]
fn a_terminal_that_is_closed_stops_the_run_in_good_order_and_a_warning_does_not() {
    let workspace = Workspace::new();
    let (mut coordinator, workers) = train(&workspace);
    let reached = coordinator.status()["step"].as_u64();
    for signal in ["USR1", "USR2"] {
        coordinator.process.signal(signal);
        workers.iter().for_each(|worker| worker.signal(signal));
    }
    wait_for("more steps", || (coordinator.status()["step"].as_u64() > reached.map(|step| step + 20)).then_some(()));
    assert!(!coordinator.process.ended());
    // More than once, as a shell and the system do.
    coordinator.process.signal("HUP");
    coordinator.process.signal("HUP");
    let [first, second] = workers;
    left(first, &workspace.path("worker-0.log"));
    left(second, &workspace.path("worker-1.log"));
    assert_eq!(coordinator.process.exit().0, Some(0));
    assert_eq!(workspace.events("run", "stopped").len(), 1);
}

#[test]
fn a_run_under_nohup_goes_on_when_the_terminal_is_closed() {
    let workspace = Workspace::new();
    let config = long_run(&workspace);
    let mut serve = std::process::Command::new("nohup");
    serve.arg(test_support::program("coordinator")).arg("serve").arg("--config").arg(&config);
    serve.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).stdin(Stdio::null());
    let mut coordinator = Process::start(&mut serve, workspace.path("coordinator.log"));
    let line = coordinator.line();
    let url = format!("http://{}", line.split("grpc=").nth(1).unwrap().split_whitespace().next().unwrap());
    coordinator.signal("HUP");
    let status = run("coordinator", &["status", "--coordinator", &url]);
    assert!(status.status.success(), "{status:?}");
    assert!(!coordinator.ended());
    coordinator.terminate();
    assert_eq!(coordinator.exit().0, Some(0));
}
