use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::{Process, command, printed_hash, wait_for};

/// A coordinator and workers, which are restarted when they end, as by a supervisor.
pub struct Cluster {
    run_file: PathBuf,
    logs: PathBuf,
    port: u16,
    /// None while it is down.
    coordinator: Option<Process>,
    workers: BTreeMap<u32, Process>,
    /// The workers to start, and when.
    due: BTreeMap<u32, Instant>,
    /// A suffix for names of logs, so that a restarted process does not overwrite the earlier
    /// one's.
    starts: u32,
}

impl Cluster {
    /// Starts all processes.
    pub fn start(run_file: &Path, workers: u32) -> Self {
        let logs = run_file.with_extension("logs");
        std::fs::create_dir_all(&logs).expect("a folder for logs can be made");
        let due = (0..workers).map(|rank| (rank, Instant::now())).collect();
        let (run_file, port, workers) = (run_file.to_owned(), free_port(), BTreeMap::new());
        let mut cluster = Self { run_file, logs, port, coordinator: None, workers, due, starts: 0 };
        cluster.start_coordinator();
        cluster.tend();
        cluster
    }

    fn log(&mut self, of: &str) -> PathBuf {
        self.starts += 1;
        self.logs.join(format!("{:03}-{of}.log", self.starts))
    }

    fn start_coordinator(&mut self) {
        let log = self.log("coordinator");
        let mut command = command("coordinator");
        command.arg("serve").arg("--config").arg(&self.run_file).args(["--http", "127.0.0.1:0"]);
        let mut process = Process::start(command.args(["--listen", &format!("127.0.0.1:{}", self.port)]), log);
        process.line();
        self.coordinator = Some(process);
    }

    /// Kills the coordinator, and restarts it after a while.
    pub fn restart_coordinator(&mut self, away: Duration) {
        self.coordinator = None;
        std::thread::sleep(away);
        self.start_coordinator();
    }

    /// Suspends the coordinator for a while.
    pub fn stop_coordinator(&mut self, away: Duration) {
        let coordinator = self.coordinator.as_ref().expect("it is there");
        coordinator.signal("STOP");
        std::thread::sleep(away);
        coordinator.signal("CONT");
    }

    /// Sends a signal to a worker; if it ends, it is restarted after a while.
    pub fn signal(&mut self, rank: u32, name: &str, away: Duration) {
        if let Some(worker) = self.workers.get(&rank) {
            worker.signal(name);
            self.due.insert(rank, Instant::now() + away);
        }
    }

    /// Restarts the workers that have ended and are due.
    pub fn tend(&mut self) {
        let ended = |(rank, worker): (&u32, &mut Process)| worker.ended().then_some(*rank);
        let ended: Vec<u32> = self.workers.iter_mut().filter_map(ended).collect();
        for rank in ended {
            self.workers.remove(&rank);
            self.due.entry(rank).or_insert_with(Instant::now);
        }
        let due = |(rank, due): (&u32, &Instant)| (*due <= Instant::now()).then_some(*rank);
        for rank in self.due.iter().filter_map(due).collect::<Vec<_>>() {
            self.due.remove(&rank);
            if !self.workers.contains_key(&rank) {
                let log = self.log(&format!("worker-{rank}"));
                let mut command = command("worker");
                command.args(["join", "--coordinator", &format!("http://127.0.0.1:{}", self.port)]);
                let command = command.args(["--rank", &rank.to_string(), "--threads", "1", "--join-timeout", "30"]);
                self.workers.insert(rank, Process::start(command, log));
            }
        }
    }

    /// Waits for the end of the run as long as `steps` increases. Returns the hashes of the
    /// parameters of all workers that were present.
    pub fn finish(&mut self, steps: impl Fn() -> i64) -> Vec<String> {
        let mut known = Some(-1);
        while let Some(before) = known {
            known = wait_for("a step, or the end of the run", || {
                if self.coordinator.as_mut().is_none_or(Process::ended) {
                    return Some(None);
                }
                self.tend();
                Some(steps()).filter(|steps| *steps > before).map(Some)
            });
        }
        let coordinator = self.coordinator.take().expect("it was started");
        let log = coordinator.log();
        assert!(coordinator.finish().0, "{log}");
        let workers = std::mem::take(&mut self.workers).into_values();
        // A worker that joined after the end is refused, and prints no hash.
        workers.filter_map(|worker| printed_hash(&worker.finish().1)).collect()
    }
}

/// A free port outside the range of outgoing connections. No two clusters of this process get the
/// same.
fn free_port() -> u16 {
    static TAKEN: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 8_000) as u16;
    let mut ports = std::iter::repeat_with(|| first + TAKEN.fetch_add(1, Ordering::Relaxed)).take(1_000);
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(free).expect("a port is free")
}
