//! How workers find the coordinator, their ranks and each other under launchers, and what they are
//! told where that goes wrong.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use test_support::network::Network;
use test_support::{Coordinator, Process, Workspace, command, error_line, run, wait_for};

/// A run that does not end by itself.
fn endless(workspace: &Workspace, workers: u32, heartbeat_timeout: f64) -> PathBuf {
    let path =
        workspace.run_file("run", workers, &format!("control: {{ heartbeat_timeout: {heartbeat_timeout:.1} }}\n"));
    let text = std::fs::read_to_string(&path).unwrap();
    let one_of_few = format!("workers: {{ min: {workers}, max: {workers} }}");
    let text = text.replace("steps: 4, batch: 12", "steps: 100000, batch: 12");
    std::fs::write(&path, text.replace(&one_of_few, &format!("workers: {{ min: 1, max: {workers} }}"))).unwrap();
    path
}

/// A worker in this environment, without `--rank`.
fn join_in(workspace: &Workspace, url: &str, name: &str, environment: &[(&str, &str)]) -> Process {
    let mut join = command("worker");
    join.args(["join", "--coordinator", url, "--threads", "1"]).envs(environment.iter().copied());
    Process::start(&mut join, workspace.path(&format!("{name}.log")))
}

/// The error of a worker that ended.
fn error_of(workspace: &Workspace, name: &str, process: Process) -> String {
    let (well, _) = process.finish();
    assert!(!well, "{name} should have failed");
    let log = std::fs::read_to_string(workspace.path(&format!("{name}.log"))).unwrap();
    // libtorch may have something to say after it.
    let error = log.lines().find_map(|line| line.strip_prefix("worker: error: "));
    error.unwrap_or_else(|| panic!("no error in {log:?}")).to_owned()
}

/// Waits until a worker has its place.
fn joined(process: &Process) -> String {
    wait_for("a place", || process.log().lines().find(|line| line.contains("joined")).map(str::to_owned))
}

/// As in `for i in 0 1 2; do worker join & done` in a batch script of Slurm.
#[test]
fn workers_of_a_loop_in_a_batch_script_get_ranks_of_their_own() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 3, ""));
    let batch_script = [("SLURM_JOB_ID", "7"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "3")];
    let workers =
        [0, 1, 2].map(|number| join_in(&workspace, &coordinator.url, &format!("worker {number}"), &batch_script));
    let ranks = workers.map(|worker| {
        assert!(worker.log().contains("SLURM_PROCID=0 is not used") || joined(&worker).contains("rank_source"));
        let (well, printed) = worker.finish();
        assert!(well);
        printed.split_whitespace().find_map(|word| word.strip_prefix("rank=")).unwrap().to_owned()
    });
    let mut ranks = ranks.to_vec();
    ranks.sort();
    assert_eq!(ranks, ["0", "1", "2"]);
    assert!(coordinator.process.finish().0);
}

/// As in the same loop, run by a task of several; and of workers that a person starts with one
/// rank.
#[test]
fn of_several_workers_of_one_rank_the_first_stays_and_the_others_learn_where_it_came_from() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &endless(&workspace, 3, 10.0));
    let task = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
    let first = join_in(&workspace, &coordinator.url, "first", &task);
    let line = joined(&first);
    assert!(line.contains("rank=1") && line.contains("rank_source=\"SLURM_PROCID\""), "{line}");
    // While the first one is loading, and when it trains.
    let second = join_in(&workspace, &coordinator.url, "second", &task);
    let third = coordinator.worker(&workspace, 1);
    let error = error_of(&workspace, "second", second);
    for part in ["rank 1 is taken", "127.0.0.1", "SLURM_PROCID", "--rank"] {
        assert!(error.contains(part), "{error}");
    }
    let error = error_of(&workspace, "worker-1", third);
    assert!(error.contains("rank 1 is taken") && error.contains("choose another --rank"), "{error}");
    let index = [("JOB_COMPLETION_INDEX", "1")];
    let error = error_of(&workspace, "fourth", join_in(&workspace, &coordinator.url, "fourth", &index));
    assert!(error.contains("rank 1 came from the environment variable JOB_COMPLETION_INDEX"), "{error}");
    let members = coordinator.status()["members"].as_array().unwrap().len();
    assert_eq!(members, 1);
    assert_eq!(workspace.events("run", "lost"), Vec::<serde_json::Value>::new());
}

#[test]
fn a_variable_that_is_no_rank_is_named() {
    let environment = [("SLURM_PROCID", "first"), ("SLURM_STEP_NUM_TASKS", "2")];
    let output = command("worker").args(["join"]).envs(environment).output().unwrap();
    let expected = "environment variable SLURM_PROCID is \"first\", not a rank below SLURM_STEP_NUM_TASKS=2: unset it, or pass --rank";
    assert_eq!(error_line(&output), expected);
}

/// What a worker that joins there says in the end; it must not have tried for long.
fn refused(url: &str) -> String {
    let output = run("worker", &["join", "--coordinator", url, "--join-timeout", "600"]);
    error_line(&output)
}

#[test]
fn a_worker_that_joins_the_http_port_is_told_the_other_one() {
    let workspace = Workspace::new();
    let coordinator = Coordinator::start(&workspace, &workspace.run_file("run", 1, ""));
    let grpc_port = coordinator.url.rsplit_once(':').unwrap().1;
    let error = refused(&format!("http://{}", coordinator.http));
    assert!(error.contains("HTTP port") && error.ends_with(&format!("its gRPC port is {grpc_port}")), "{error}");
    // So is a person.
    let status = run("coordinator", &["status", "--coordinator", &format!("http://{}", coordinator.http)]);
    assert!(error_line(&status).contains("HTTP port"), "{status:?}");
}

/// A server that says the same on every connection, once it has heard something.
fn server(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            // The other side may be gone already.
            _ = stream.read(&mut [0; 256]);
            _ = stream.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}")
}

#[test]
fn a_port_of_another_protocol_is_named_at_once() {
    for (answer, expected) in [
        ("SSH-2.0-OpenSSH_9.2p1\r\n", "SSH-2.0-OpenSSH_9.2p1"),
        ("-ERR unknown command 'PRI'\r\n", "-ERR unknown command"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "HTTP/1 (status 404)"),
        ("\x15\x03\x03\x00\x02\x02\x46\x00\x00", "https://"),
    ] {
        let error = refused(&server(answer));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_proxy_whose_backend_is_away_and_an_unknown_host_are_tried_again() {
    let away = server("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n");
    for (url, expected) in [
        (away.as_str(), "gave up on"),
        ("http://no-such-host.invalid:7070", "the host name no-such-host.invalid is not known"),
    ] {
        let output = run("worker", &["join", "--coordinator", url, "--join-timeout", "1"]);
        let error = error_line(&output);
        assert!(error.starts_with(&format!("gave up on {url}")) && error.contains(expected), "{error}");
    }
}

#[test]
fn an_address_that_is_no_machines_is_refused() {
    for host in ["0.0.0.0", "::", "224.0.0.1", "head"] {
        let output = run("worker", &["join", "--host", host]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("--host") && said.contains(host), "{said}");
    }
}

// ---------------------------------------------------------------------------------------------------- several machines

const HEAD: u32 = 0;

/// A coordinator on the first machine, for all.
fn serve(network: &Network, workspace: &Workspace, config: &Path) -> Process {
    let mut serve = command("coordinator");
    serve.arg("serve").arg("--config").arg(config).args(["--insecure", "--http", "127.0.0.1:0"]);
    serve.args(["--listen", "0.0.0.0:7070"]);
    let mut coordinator = Process::start(&mut network.on(HEAD, &serve), workspace.path("coordinator.log"));
    coordinator.line();
    coordinator
}

/// A worker on a machine, which finds the coordinator there.
fn worker(network: &Network, workspace: &Workspace, machine: u32, coordinator: &str, rank: u32, name: &str) -> Process {
    let mut join: Command = command("worker");
    join.args(["join", "--coordinator", &format!("http://{coordinator}:7070"), "--threads", "1"]);
    join.args(["--rank", &rank.to_string()]);
    Process::start(&mut network.on(machine, &join), workspace.path(&format!("{name}.log")))
}

/// Waits until exactly these train; returns how far.
fn train(workspace: &Workspace, members: &[i64], beyond: i64) -> i64 {
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let query = "SELECT members_json, (SELECT max(step) FROM steps WHERE generation = number) AS reached
        FROM generations WHERE reached > ? ORDER BY number DESC LIMIT 1";
    wait_for("training", || {
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?));
        let (found, reached) = journal.query_row(query, [beyond], row).ok()?;
        let found: Vec<serde_json::Value> = serde_json::from_str(&found).unwrap();
        let found: Vec<i64> = found.iter().map(|member| member["rank"].as_i64().unwrap()).collect();
        (found == members).then_some(reached)
    })
}

/// It holds the only state, and its identity is the lower one: the other would have to go if
/// neither was at fault.
#[test]
fn a_worker_that_advertises_a_loopback_address_to_another_machine_saves_and_goes() {
    let Some(network) = Network::new(2) else { return };
    let workspace = Workspace::new();
    let coordinator = serve(&network, &workspace, &endless(&workspace, 2, 10.0));
    let local = worker(&network, &workspace, HEAD, "127.0.0.1", 0, "local");
    let reached = train(&workspace, &[0], 3);
    let _other = worker(&network, &workspace, 1, &network.address(HEAD), 1, "other");
    let error = error_of(&workspace, "local", local);
    for part in ["127.0.0.1", &network.address(1), "rank 1", "--host"] {
        assert!(error.contains(part), "{error}");
    }
    train(&workspace, &[1], reached);
    assert_eq!(workspace.events("run", "rollback"), Vec::<serde_json::Value>::new());
    // With an address that others reach it is welcome.
    let mut again = command("worker");
    again.args(["join", "--coordinator", "http://127.0.0.1:7070", "--host", &network.address(HEAD), "--threads", "1"]);
    let _again = Process::start(&mut network.on(HEAD, &again), workspace.path("again.log"));
    train(&workspace, &[0, 1], reached);
    drop(coordinator);
}

#[test]
fn a_worker_that_replaces_a_lost_machine_waits_for_its_rank() {
    let Some(network) = Network::new(4) else { return };
    let workspace = Workspace::new();
    let _coordinator = serve(&network, &workspace, &endless(&workspace, 2, 8.0));
    let head = network.address(HEAD);
    let _stays = worker(&network, &workspace, 1, &head, 0, "stays");
    let _lost = worker(&network, &workspace, 2, &head, 1, "lost");
    let reached = train(&workspace, &[0, 1], 3);
    network.pull(2);
    let replacement = worker(&network, &workspace, 3, &head, 1, "replacement");
    train(&workspace, &[0, 1], reached);
    assert!(joined(&replacement).contains("rank=1"));
    // Another one is told who has the rank now.
    let second = worker(&network, &workspace, 1, &head, 1, "second");
    let error = error_of(&workspace, "second", second);
    assert!(error.contains("rank 1 is taken") && error.contains(&network.address(3)), "{error}");
}
