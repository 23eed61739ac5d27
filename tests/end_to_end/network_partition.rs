//! Network partitions: processes in network namespaces whose links go down.

use std::path::{Path, PathBuf};

use journal::{Generation, ReadOnlyJournal};
use test_support::network::Network;
use test_support::{Process, Workspace, command, last_trained_generation, run, wait_for};

/// The machine of the coordinator. Worker N runs on machine N + 1.
const COORDINATOR: u32 = 0;

/// Writes the run file of a run that does not finish during a test, for 1 to `workers` workers.
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

/// A coordinator and workers, each on its own machine.
struct Cluster {
    coordinator: Process,
    workers: Vec<Process>,
}

/// Starts the coordinator and the workers.
fn start_cluster(network: &Network, workspace: &Workspace, config: &Path, workers: u32) -> Cluster {
    let address = network.address(COORDINATOR);
    let mut serve = command("coordinator");
    serve.arg("serve").arg("--config").arg(config).args(["--insecure", "--http", "127.0.0.1:0"]);
    serve.args(["--listen", &format!("{address}:7070")]);
    let mut coordinator =
        Process::start(&mut network.command_on(COORDINATOR, &serve), workspace.path("coordinator.log"));
    coordinator.read_line();
    let url = format!("http://{address}:7070");
    let workers = (0..workers).map(|worker_id| {
        let mut join = command("worker");
        join.args(["join", "--coordinator", &url, "--rank", &worker_id.to_string(), "--threads", "1"]);
        Process::start(
            &mut network.command_on(1 + worker_id, &join),
            workspace.path(&format!("worker-{worker_id}.log")),
        )
    });
    let workers = workers.collect();
    Cluster { coordinator, workers }
}

/// The last generation that has applied a step, if it was formed after the one with the number
/// `generation`.
fn last_training_generation(journal: &ReadOnlyJournal, generation: u64) -> Option<Generation> {
    let (last, _) = last_trained_generation(journal)?;
    (last.number > generation).then_some(last)
}

/// The worker ids of a generation's members.
fn member_ids(generation: &Generation) -> Vec<u32> {
    generation.members.iter().map(|worker_id| worker_id.0).collect()
}

/// Waits until exactly these workers train in a generation after `generation`. Returns the number
/// of their generation.
fn wait_for_training(journal: &ReadOnlyJournal, worker_ids: &[u32], generation: u64) -> u64 {
    wait_for("training", || {
        let last = last_training_generation(journal, generation)?;
        (member_ids(&last) == worker_ids).then_some(last.number)
    })
}

/// Stops the run, and checks its journal.
fn stop_and_audit(cluster: Cluster, config: &Path) {
    let Cluster { coordinator, workers } = cluster;
    coordinator.terminate();
    assert!(coordinator.succeeds());
    drop(workers);
    let audit = run("coordinator", &["audit", "--config", &config.to_string_lossy(), "--json"]);
    assert!(audit.status.success(), "{audit:?}");
}

#[test]
fn a_disconnected_worker_counts_as_failed_and_rejoins_when_it_is_connected_again() {
    let Some(network) = Network::new(4) else { return };
    let workspace = Workspace::new();
    let config = run_file(&workspace, 3);
    let cluster = start_cluster(&network, &workspace, &config, 3);
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let first_generation = wait_for_training(&journal, &[0, 1, 2], 0);
    network.disconnect(1 + 1);
    let without_worker_1 = wait_for_training(&journal, &[0, 2], first_generation);
    network.reconnect(1 + 1);
    wait_for_training(&journal, &[0, 1, 2], without_worker_1);
    stop_and_audit(cluster, &config);
}

#[test]
fn workers_rejoin_a_coordinator_that_was_disconnected() {
    let Some(network) = Network::new(3) else { return };
    let workspace = Workspace::new();
    let config = run_file(&workspace, 2);
    let cluster = start_cluster(&network, &workspace, &config, 2);
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let first_generation = wait_for_training(&journal, &[0, 1], 0);
    network.disconnect(COORDINATOR);
    wait_for("the failure of both workers", || (workspace.events("run", "lost").len() >= 2).then_some(()));
    network.reconnect(COORDINATOR);
    wait_for_training(&journal, &[0, 1], first_generation);
    // Steps that were applied meanwhile are not given up.
    let moves = journal.history_moves().unwrap();
    assert!(moves.iter().all(|moved| moved.to > moved.from), "{moves:?}");
    stop_and_audit(cluster, &config);
}

#[test]
fn one_of_two_workers_that_cannot_reach_each_other_is_evicted() {
    let Some(network) = Network::new(4) else { return };
    let workspace = Workspace::new();
    let config = run_file(&workspace, 3);
    let mut cluster = start_cluster(&network, &workspace, &config, 3);
    let journal = wait_for("a journal", || workspace.try_journal("run"));
    let first_generation = wait_for_training(&journal, &[0, 1, 2], 0);
    // Both still reach the coordinator and worker 0.
    network.block_traffic_between(1 + 1, 1 + 2);
    let members = wait_for("two workers that train", || {
        let members = member_ids(&last_training_generation(&journal, first_generation)?);
        (members.len() == 2).then_some(members)
    });
    assert!(members == [0, 1] || members == [0, 2], "{members:?}");
    let evicted = if members.contains(&1) { 2 } else { 1 };
    let (succeeded, _) = cluster.workers.remove(evicted).finish();
    assert!(!succeeded);
    let log = std::fs::read_to_string(workspace.path(&format!("worker-{evicted}.log"))).unwrap();
    assert!(log.lines().last().unwrap().contains("cannot reach each other"), "{log}");
    stop_and_audit(cluster, &config);
}
