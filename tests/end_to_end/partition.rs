//! Machines that lose each other: real processes in network namespaces whose cables are pulled.

use std::path::{Path, PathBuf};

use rusqlite::Connection;
use test_support::network::Network;
use test_support::{Process, Workspace, command, run, wait_for};

const COORDINATOR: u32 = 0;

fn run_file(workspace: &Workspace, workers: u32) -> PathBuf {
    let folder = workspace.path("");
    let folder = folder.display();
    let text = format!(
        "name: test\nseed: 11\noutput: {folder}/run\nworkers: {{ min: 1, max: {workers} }}\n\
         data:\n  karpathy: {{ annotations: {folder}/world/dataset.json, images: {folder}/world/images }}\n\
         vocabulary: corpus\nevaluator: {{ preset: tiny }}\ncaptioner: {{ preset: tiny, dropout: 0.0 }}\n\
         decoding: {{ beams: 2, max_length: 8 }}\ncontrol: {{ heartbeat_timeout: 1.5 }}\nstages:\n  \
         - {{ name: xe, objective: cross_entropy, steps: 100000, batch: 12, optimizer: {{ learning_rate: 1.0e-3 }} }}\n"
    );
    let path = workspace.path("run.yaml");
    std::fs::write(&path, text).unwrap();
    path
}

/// A coordinator and workers, each on a machine of its own.
struct Cluster {
    coordinator: Process,
    workers: Vec<Process>,
}

fn start(network: &Network, workspace: &Workspace, config: &Path, workers: u32) -> Cluster {
    let address = network.address(COORDINATOR);
    let mut serve = command("coordinator");
    serve.arg("serve").arg("--config").arg(config).args(["--insecure", "--http", "127.0.0.1:0"]);
    serve.args(["--listen", &format!("{address}:7070")]);
    let mut coordinator = Process::start(&mut network.on(COORDINATOR, &serve), workspace.path("coordinator.log"));
    coordinator.line();
    let url = format!("http://{address}:7070");
    let workers = (0..workers).map(|rank| {
        let mut join = command("worker");
        join.args(["join", "--coordinator", &url, "--rank", &rank.to_string(), "--threads", "1"]);
        Process::start(&mut network.on(1 + rank, &join), workspace.path(&format!("worker-{rank}.log")))
    });
    let workers = workers.collect();
    Cluster { coordinator, workers }
}

/// The last generation that applied a step beyond `step`, its members, and how far it is.
fn training(journal: &Connection, beyond: (i64, i64)) -> Option<(i64, Vec<i64>, i64)> {
    let query = "SELECT number, members_json, (SELECT max(step) FROM steps WHERE generation = number) AS reached
        FROM generations WHERE number > ? AND reached > ? ORDER BY number DESC LIMIT 1";
    let (number, members, reached): (i64, String, i64) =
        journal.query_row(query, [beyond.0, beyond.1], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).ok()?;
    let members: Vec<serde_json::Value> = serde_json::from_str(&members).unwrap();
    Some((number, members.iter().map(|member| member["rank"].as_i64().unwrap()).collect(), reached))
}

/// Waits until these members train in a generation after `after`.
fn train(journal: &Connection, members: &[i64], after: i64) -> i64 {
    wait_for("training", || {
        training(journal, (after, 0)).filter(|(_, found, _)| found == members).map(|(number, ..)| number)
    })
}

/// Lets the run end as it stands; every sample that was committed was so once.
fn stop(cluster: Cluster, config: &Path) {
    let Cluster { coordinator, workers } = cluster;
    coordinator.terminate();
    assert!(coordinator.finish().0);
    drop(workers);
    let audit = run("coordinator", &["audit", "--config", &config.to_string_lossy(), "--json"]);
    assert!(audit.status.success(), "{audit:?}");
}

#[test]
fn a_worker_whose_cable_is_pulled_is_missed_and_comes_back_with_it() {
    let Some(network) = Network::new(4) else { return };
    let workspace = Workspace::new();
    let config = run_file(&workspace, 3);
    let cluster = start(&network, &workspace, &config, 3);
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let together = train(&journal, &[0, 1, 2], 0);
    network.pull(1 + 1);
    let without = train(&journal, &[0, 2], together);
    network.plug(1 + 1);
    train(&journal, &[0, 1, 2], without);
    stop(cluster, &config);
}

#[test]
fn a_coordinator_whose_cable_is_pulled_is_waited_for() {
    let Some(network) = Network::new(3) else { return };
    let workspace = Workspace::new();
    let config = run_file(&workspace, 2);
    let cluster = start(&network, &workspace, &config, 2);
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let together = train(&journal, &[0, 1], 0);
    network.pull(COORDINATOR);
    wait_for("the loss of both", || {
        let lost = "SELECT count(*) FROM events WHERE kind = 'lost'";
        (journal.query_row(lost, [], |row| row.get::<_, i64>(0)).unwrap() >= 2).then_some(())
    });
    network.plug(COORDINATOR);
    train(&journal, &[0, 1], together);
    // Whatever was applied meanwhile is still there.
    assert_eq!(workspace.events("run", "rollback"), Vec::<serde_json::Value>::new());
    stop(cluster, &config);
}

#[test]
fn of_two_workers_that_cannot_reach_each_other_one_goes_on_with_the_rest() {
    let Some(network) = Network::new(4) else { return };
    let workspace = Workspace::new();
    let config = run_file(&workspace, 3);
    let mut cluster = start(&network, &workspace, &config, 3);
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let together = train(&journal, &[0, 1, 2], 0);
    // Both still reach the coordinator, and the third.
    network.separate(1 + 1, 1 + 2);
    let (_, members, _) =
        wait_for("two that train", || training(&journal, (together, 0)).filter(|(_, members, _)| members.len() == 2));
    assert!(members == [0, 1] || members == [0, 2], "{members:?}");
    let gone = if members.contains(&1) { 2 } else { 1 };
    let (well, _) = cluster.workers.remove(gone).finish();
    assert!(!well);
    let log = std::fs::read_to_string(workspace.path(&format!("worker-{gone}.log"))).unwrap();
    assert!(log.lines().last().unwrap().contains("cannot reach each other"), "{log}");
    stop(cluster, &config);
}
