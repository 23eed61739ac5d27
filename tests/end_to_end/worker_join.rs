//! Joins of a run: worker ids from launchers' environment variables, wrong addresses, and workers
//! on several machines.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_support::network::Network;
use test_support::{Coordinator, Process, Workspace, command, error_line, last_trained_generation, run, wait_for};

/// Writes the run file of a run that does not finish during a test, for 1 to `workers` workers.
fn long_run(workspace: &Workspace, workers: u32, heartbeat_timeout: f64) -> PathBuf {
    let path =
        workspace.run_file("run", workers, &format!("control: {{ heartbeat_timeout: {heartbeat_timeout:.1} }}\n"));
    let text = std::fs::read_to_string(&path).unwrap();
    let exact_workers = format!("workers: {{ min: {workers}, max: {workers} }}");
    let text = text.replace("steps: 4, batch: 12", "steps: 100000, batch: 12");
    std::fs::write(&path, text.replace(&exact_workers, &format!("workers: {{ min: 1, max: {workers} }}"))).unwrap();
    path
}

/// Starts a worker without `--rank`, with these environment variables.
fn start_worker_in(workspace: &Workspace, url: &str, name: &str, environment: &[(&str, &str)]) -> Process {
    let mut join = command("worker");
    join.args(["join", "--coordinator", url, "--threads", "1"]).envs(environment.iter().copied());
    Process::start(&mut join, workspace.path(&format!("{name}.log")))
}

/// The error of a worker that fails. `name` is that of its log.
fn worker_error(workspace: &Workspace, name: &str, process: Process) -> String {
    let (succeeded, _) = process.finish();
    assert!(!succeeded, "{name} should have failed");
    let log = std::fs::read_to_string(workspace.path(&format!("{name}.log"))).unwrap();
    // libtorch may print more lines after the error.
    let error = log.lines().find_map(|line| line.strip_prefix("worker: error: "));
    error.unwrap_or_else(|| panic!("no error in {log:?}")).to_owned()
}

/// Waits until a worker has joined. Returns the line that it logs then.
fn joined_line(process: &Process) -> String {
    wait_for("a worker to join", || process.log().lines().find(|line| line.contains("joined")).map(str::to_owned))
}

/// A Slurm batch script runs `for i in 0 1 2; do worker join & done`.
#[test]
fn workers_that_a_batch_script_starts_in_a_loop_get_different_ids() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 3, ""));
    let batch_script = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")];
    let workers = [0, 1, 2]
        .map(|number| start_worker_in(&workspace, &coordinator.url, &format!("worker {number}"), &batch_script));
    let worker_ids = workers.map(|worker| {
        assert!(worker.log().contains("SLURM_PROCID=0 is not used") || joined_line(&worker).contains("id_source"));
        let (succeeded, printed) = worker.finish();
        assert!(succeeded);
        printed.split_whitespace().find_map(|word| word.strip_prefix("rank=")).unwrap().to_owned()
    });
    let mut worker_ids = worker_ids.to_vec();
    worker_ids.sort();
    assert_eq!(worker_ids, ["0", "1", "2"]);
    assert!(coordinator.process.succeeds());
}

/// Several workers request the same id: from a launcher's variables, and with `--rank`.
#[test]
fn a_taken_worker_id_is_refused_and_the_error_names_the_source_of_the_id() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &long_run(&workspace, 3, 10.0));
    let task = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
    let first = start_worker_in(&workspace, &coordinator.url, "first", &task);
    let line = joined_line(&first);
    assert!(line.contains("worker_id=1") && line.contains("id_source=\"SLURM_PROCID\""), "{line}");
    // The first worker is loading, or already trains.
    let second = start_worker_in(&workspace, &coordinator.url, "second", &task);
    let third = coordinator.start_worker(&workspace, 1);
    let error = worker_error(&workspace, "second", second);
    for part in ["worker id 1 is taken", "127.0.0.1", "SLURM_PROCID", "--rank"] {
        assert!(error.contains(part), "{error}");
    }
    let error = worker_error(&workspace, "worker-1", third);
    assert!(error.contains("worker id 1 is taken") && error.contains("choose another --rank"), "{error}");
    let index = [("JOB_COMPLETION_INDEX", "1")];
    let error = worker_error(&workspace, "fourth", start_worker_in(&workspace, &coordinator.url, "fourth", &index));
    assert!(error.contains("worker id 1 is from the environment variable JOB_COMPLETION_INDEX"), "{error}");
    let members = coordinator.status()["members"].as_array().unwrap().len();
    assert_eq!(members, 1);
    assert_eq!(workspace.events("run", "lost"), Vec::<serde_json::Value>::new());
}

#[test]
fn an_invalid_rank_in_an_environment_variable_is_an_error() {
    let environment = [("SLURM_PROCID", "first"), ("SLURM_STEP_NUM_TASKS", "2")];
    let output = command("worker").args(["join"]).envs(environment).output().unwrap();
    let expected = "environment variable SLURM_PROCID is \"first\", not a rank below SLURM_STEP_NUM_TASKS=2: unset it, or pass --rank";
    assert_eq!(error_line(&output), expected);
}

/// The error of a worker that joins at this URL. The worker must not retry until the join timeout.
fn join_error(url: &str) -> String {
    let output = run("worker", &["join", "--coordinator", url, "--join-timeout", "600"]);
    error_line(&output)
}

#[test]
fn joining_at_the_http_port_is_an_error_that_names_the_grpc_port() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 1, ""));
    let grpc_port = coordinator.url.rsplit_once(':').unwrap().1;
    let error = join_error(&format!("http://{}", coordinator.http_address));
    assert!(error.contains("HTTP port") && error.ends_with(&format!("its gRPC port is {grpc_port}")), "{error}");
    // Commands have the same error.
    let status = run("coordinator", &["status", "--coordinator", &format!("http://{}", coordinator.http_address)]);
    assert!(error_line(&status).contains("HTTP port"), "{status:?}");
}

/// Starts a server that sends `response` on each connection after it has received data. Returns its
/// URL.
fn start_server(response: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // The client may have disconnected.
            _ = stream.read(&mut [0; 256]);
            _ = stream.write_all(response.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn joining_at_a_port_of_another_protocol_is_an_immediate_error() {
    for (response, expected) in [
        ("SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-2.0-OpenSSH_9.2p1"),
        ("-ERR unknown command 'PRI'\r\n", "-ERR unknown command"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "HTTP/1 (status 404)"),
        ("\x15\x03\x03\x00\x02\x02\x46\x00\x00", "https://"),
    ] {
        let error = join_error(&start_server(response));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn joins_are_retried_after_http_503_and_for_unknown_hosts() {
    let unavailable = start_server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    for (url, expected) in [
        (unavailable.as_str(), "gave up on"),
        ("http://no-such-host.invalid:7070", "the host name no-such-host.invalid is not known"),
    ] {
        let output = run("worker", &["join", "--coordinator", url, "--join-timeout", "1"]);
        let error = error_line(&output);
        assert!(error.starts_with(&format!("gave up on {url}")) && error.contains(expected), "{error}");
    }
}

#[test]
fn a_host_that_is_not_the_address_of_a_machine_is_refused() {
    for host in ["0.0.0.0", "::", "224.0.0.1", "head"] {
        let output = run("worker", &["join", "--host", host]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && stderr.contains("--host") && stderr.contains(host), "{stderr}");
    }
}

// ------------------------------------------------------------------------------- several machines

/// The machine of the coordinator.
const HEAD: u32 = 0;

/// Starts a coordinator on machine [`HEAD`] that listens on all addresses.
fn serve(network: &Network, workspace: &Workspace, config: &Path) -> Process {
    let mut serve = command("coordinator");
    serve.arg("serve").arg("--config").arg(config).args(["--insecure", "--http", "127.0.0.1:0"]);
    serve.args(["--listen", "0.0.0.0:7070"]);
    let mut coordinator = Process::start(&mut network.command_on(HEAD, &serve), workspace.path("coordinator.log"));
    coordinator.read_line();
    coordinator
}

/// Starts a worker on a machine. `coordinator` is the address of the coordinator's machine; `name`
/// is that of the log.
fn start_worker(
    network: &Network,
    workspace: &Workspace,
    machine: u32,
    coordinator: &str,
    worker_id: u32,
    name: &str,
) -> Process {
    let mut join: Command = command("worker");
    join.args(["join", "--coordinator", &format!("http://{coordinator}:7070"), "--threads", "1"]);
    join.args(["--rank", &worker_id.to_string()]);
    Process::start(&mut network.command_on(machine, &join), workspace.path(&format!("{name}.log")))
}

/// Waits until exactly these workers have trained beyond a step. Returns the last step.
fn wait_for_training(workspace: &Workspace, worker_ids: &[u32], beyond: u64) -> u64 {
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    wait_for("training", || {
        let (generation, reached) = last_trained_generation(&journal)?;
        let members = generation.members.iter().map(|worker_id| &worker_id.0);
        (members.eq(worker_ids) && reached > beyond).then_some(reached)
    })
}

/// The worker holds the only state and has the lower id. If its address were valid, the coordinator
/// would evict the other worker.
#[test]
fn a_worker_with_a_loopback_address_is_evicted_when_a_worker_on_another_machine_joins() {
    let Some(network) = Network::new(2) else { return };
    let workspace = Workspace::new();
    let coordinator = serve(&network, &workspace, &long_run(&workspace, 2, 10.0));
    let local = start_worker(&network, &workspace, HEAD, "127.0.0.1", 0, "local");
    let reached = wait_for_training(&workspace, &[0], 3);
    let _other = start_worker(&network, &workspace, 1, &network.address(HEAD), 1, "other");
    let error = worker_error(&workspace, "local", local);
    for part in ["127.0.0.1", &network.address(1), "worker 1", "--host"] {
        assert!(error.contains(part), "{error}");
    }
    wait_for_training(&workspace, &[1], reached);
    let moves = workspace.journal("run").history_moves().unwrap();
    assert!(moves.iter().all(|moved| moved.to > moved.from), "{moves:?}");
    // With an address that others can reach, it can join again.
    let mut join = command("worker");
    join.args(["join", "--coordinator", "http://127.0.0.1:7070", "--host", &network.address(HEAD), "--threads", "1"]);
    let _rejoined = Process::start(&mut network.command_on(HEAD, &join), workspace.path("rejoined.log"));
    wait_for_training(&workspace, &[0, 1], reached);
    drop(coordinator);
}

#[test]
fn a_replacement_of_a_failed_machine_waits_for_its_worker_id() {
    let Some(network) = Network::new(4) else { return };
    let workspace = Workspace::new();
    let _coordinator = serve(&network, &workspace, &long_run(&workspace, 2, 8.0));
    let head = network.address(HEAD);
    let _first = start_worker(&network, &workspace, 1, &head, 0, "first");
    let _failed = start_worker(&network, &workspace, 2, &head, 1, "failed");
    let reached = wait_for_training(&workspace, &[0, 1], 3);
    network.disconnect(2);
    let replacement = start_worker(&network, &workspace, 3, &head, 1, "replacement");
    wait_for_training(&workspace, &[0, 1], reached);
    assert!(joined_line(&replacement).contains("worker_id=1"));
    // The error of another worker names the machine that has the id.
    let second = start_worker(&network, &workspace, 1, &head, 1, "second");
    let error = worker_error(&workspace, "second", second);
    assert!(error.contains("worker id 1 is taken") && error.contains(&network.address(3)), "{error}");
}
