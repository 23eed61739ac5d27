//! How programs end: the exit statuses of docs/operations.md, signals, and closed or full standard
//! output.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use test_support::{Coordinator, Process, Workspace, command, error_line, run, run_to_completion, wait_for};

/// Writes the run file of a run that does not finish during a test.
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

/// Starts a run with two workers whose exit status after leaving is 75. Waits until both train.
fn start_training(workspace: &Workspace) -> (Coordinator, [Process; 2]) {
    let coordinator = Coordinator::start(workspace, &long_run(workspace));
    let workers = [0, 1].map(|worker_id| coordinator.start_worker_with(workspace, worker_id, &["--left-status", "75"]));
    wait_for("steps of both workers", || {
        let status = coordinator.status();
        let members = status["members"].as_array().unwrap().len();
        (members == 2 && status["state"] == "running" && status["step"].as_u64() > Some(3)).then_some(())
    });
    (coordinator, workers)
}

/// Checks that a worker leaves with exit status 75 and without an error.
fn assert_left(worker: Process, log: &Path) {
    let (code, printed) = worker.wait_for_exit();
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(code, Some(75), "{log}");
    assert!(printed.contains("left rank="), "{printed}");
    assert!(!log.contains("error"), "{log}");
}

/// Runs an admin command of `coordinator`.
fn run_admin_command(coordinator: &Coordinator, arguments: &[&str]) {
    let output = run("coordinator", &[arguments, &["--coordinator", &coordinator.url]].concat());
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn workers_exit_with_left_status_after_a_drain_and_after_a_stop_of_the_run() {
    let workspace = Workspace::new();
    let (coordinator, [first, second]) = start_training(&workspace);
    run_admin_command(&coordinator, &["drain", "1"]);
    assert_left(second, &workspace.path("worker-1.log"));
    run_admin_command(&coordinator, &["stop"]);
    assert_left(first, &workspace.path("worker-0.log"));
    assert_eq!(coordinator.process.wait_for_exit().0, Some(0));
}

#[test]
fn workers_exit_with_left_status_when_the_coordinator_is_terminated() {
    let workspace = Workspace::new();
    let (coordinator, [first, second]) = start_training(&workspace);
    coordinator.process.terminate();
    assert_left(first, &workspace.path("worker-0.log"));
    assert_left(second, &workspace.path("worker-1.log"));
    assert_eq!(coordinator.process.wait_for_exit().0, Some(0));
}

#[test]
fn watch_ends_with_the_run_and_events_lists_and_filters_the_run_events() {
    let workspace = Workspace::new();
    let run_file = workspace.run_file("run", 1, "");
    let coordinator = Coordinator::start(&workspace, &run_file);
    // The run ends within the first interval. The last line is printed at the end of the run.
    let watch = ["watch", "--plain", "--coordinator", &coordinator.url, "--interval"];
    let mut watches = ["50", "60"].map(|interval| {
        Process::start(
            command("coordinator").args(watch).arg(interval),
            workspace.path(&format!("watch-{interval}.log")),
        )
    });
    let first_lines: Vec<String> = watches.iter_mut().map(Process::read_line).collect();
    assert!(first_lines.iter().all(|line| line.contains("waiting")), "{first_lines:?}");
    assert!(coordinator.start_worker(&workspace, 0).succeeds());
    for watch in watches {
        let (code, printed) = watch.wait_for_exit();
        assert_eq!(code, Some(0));
        assert!(printed.lines().last().is_some_and(|line| line.contains("finished")), "{printed}");
    }
    assert_eq!(coordinator.process.wait_for_exit().0, Some(0));

    let config = run_file.to_string_lossy();
    let run_events = |options: &[&str]| run("coordinator", &[&["events", "--config", &*config], options].concat());
    let text = String::from_utf8(run_events(&[]).stdout).unwrap();
    for kind in ["joined", "generation", "checkpoint", "evaluation", "finished"] {
        assert!(text.lines().any(|line| line.split_whitespace().nth(3) == Some(kind)), "no {kind} in {text}");
    }
    let filtered = String::from_utf8(run_events(&["--kind", "evaluation", "--json"]).stdout).unwrap();
    let filtered: Vec<serde_json::Value> = filtered.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!filtered.is_empty() && filtered.iter().all(|event| event["kind"] == "evaluation"), "{filtered:?}");
    let unknown = run_events(&["--kind", "evaluated"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("checkpoint_damaged"), "{unknown:?}");
}

#[test]
fn errors_have_exit_status_1_and_wrong_options_exit_status_2() {
    let audit = run("coordinator", &["audit", "--state", "nowhere"]);
    assert_eq!(audit.status.code(), Some(1));
    assert!(error_line(&audit).contains("nowhere"));
    assert_eq!(run("worker", &["join", "--no-such-option"]).status.code(), Some(2));
}

/// Runs a program with this standard output. Returns its exit status and its stderr.
fn run_with_stdout(stdout: Stdio, program: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(program).args(arguments).stdout(stdout).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!stderr.contains("panicked"), "{program} {arguments:?}: {stderr}");
    (output.status.code(), stderr)
}

/// A pipe whose reading end is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_not() {
    let workspace = Workspace::new();
    let config = workspace.run_file("run", 1, "");
    run_to_completion(&workspace, &config, 1);
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
        for created in [&html, &logs, &exported, &drawn] {
            _ = std::fs::remove_dir_all(created).or_else(|_| std::fs::remove_file(created));
        }
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let (status, stderr) = run_with_stdout(full.into(), program, arguments);
        assert_eq!(status, Some(1), "{program} {arguments:?}: {stderr}");
        assert!(stderr.contains("standard output: No space left"), "{program} {arguments:?}: {stderr}");
        for created in [&html, &logs, &exported, &drawn] {
            _ = std::fs::remove_dir_all(created).or_else(|_| std::fs::remove_file(created));
        }
        let (status, stderr) = run_with_stdout(closed_pipe(), program, arguments);
        assert_eq!(status, Some(0), "{program} {arguments:?}: {stderr}");
    }
}

#[test]
fn a_run_finishes_although_stdout_and_stderr_are_closed() {
    let workspace = Workspace::new();
    let config = workspace.run_file("run", 1, "");
    // A chosen port, because the address cannot be read from standard output.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (listen, url) = (format!("127.0.0.1:{port}"), format!("http://127.0.0.1:{port}"));
    let mut serve = command("coordinator");
    serve.arg("serve").arg("--config").arg(&config).args(["--listen", &listen, "--http", "127.0.0.1:0"]);
    let mut coordinator = serve.stdout(closed_pipe()).stderr(closed_pipe()).spawn().unwrap();
    let mut join = command("worker");
    join.args(["join", "--coordinator", &url, "--rank", "0", "--threads", "1"]);
    let worker = join.stdout(closed_pipe()).stderr(closed_pipe()).status().unwrap();
    assert_eq!((worker.code(), coordinator.wait().unwrap().code()), (Some(0), Some(0)));
    assert!(workspace.journal("run").is_finished().unwrap());
}

#[test]
fn sighup_stops_the_run_and_sigusr1_and_sigusr2_do_not() {
    let workspace = Workspace::new();
    let (mut coordinator, workers) = start_training(&workspace);
    let reached = coordinator.status()["step"].as_u64();
    for signal in ["USR1", "USR2"] {
        coordinator.process.signal(signal);
        workers.iter().for_each(|worker| worker.signal(signal));
    }
    wait_for("more steps", || (coordinator.status()["step"].as_u64() > reached.map(|step| step + 20)).then_some(()));
    assert!(!coordinator.process.has_ended());
    // Twice, because the shell and the kernel may both send it.
    coordinator.process.signal("HUP");
    coordinator.process.signal("HUP");
    let [first, second] = workers;
    assert_left(first, &workspace.path("worker-0.log"));
    assert_left(second, &workspace.path("worker-1.log"));
    assert_eq!(coordinator.process.wait_for_exit().0, Some(0));
    let ends = workspace.journal("run").run_ends().unwrap();
    assert_eq!(ends.iter().map(|end| end.outcome.name()).collect::<Vec<_>>(), ["stopped"]);
}

#[test]
fn a_coordinator_under_nohup_ignores_sighup() {
    let workspace = Workspace::new();
    let config = long_run(&workspace);
    let mut serve = std::process::Command::new("nohup");
    serve.arg(test_support::program_path("coordinator")).arg("serve").arg("--config").arg(&config);
    serve.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]).stdin(Stdio::null());
    let mut coordinator = Process::start(&mut serve, workspace.path("coordinator.log"));
    let line = coordinator.read_line();
    let url = format!("http://{}", line.split("grpc=").nth(1).unwrap().split_whitespace().next().unwrap());
    coordinator.signal("HUP");
    let status = run("coordinator", &["status", "--coordinator", &url]);
    assert!(status.status.success(), "{status:?}");
    assert!(!coordinator.has_ended());
    coordinator.terminate();
    assert_eq!(coordinator.wait_for_exit().0, Some(0));
}
