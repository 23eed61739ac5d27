use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use crate::{Process, command, parameters_sha256, wait_for};

/// A coordinator and workers. Workers that end are restarted, as a supervisor does.
pub struct Cluster {
    run_file: PathBuf,
    log_folder: PathBuf,
    port: u16,
    /// None while the coordinator is down.
    coordinator: Option<Process>,
    workers: BTreeMap<u32, Process>,
    /// When workers are to be started, by worker id.
    start_times: BTreeMap<u32, Instant>,
    /// The number of log files. It is part of their names, so that a restarted process does not
    /// overwrite the earlier log.
    log_count: u32,
}

impl Cluster {
    /// Starts all processes.
    pub fn start(run_file: &Path, workers: u32) -> Self {
        let log_folder = run_file.with_extension("logs");
        std::fs::create_dir_all(&log_folder).expect("a folder for logs can be created");
        let start_times = (0..workers).map(|worker_id| (worker_id, Instant::now())).collect();
        let (run_file, port, workers) = (run_file.to_owned(), free_port(), BTreeMap::new());
        let mut cluster = Self { run_file, log_folder, port, coordinator: None, workers, start_times, log_count: 0 };
        cluster.start_coordinator();
        cluster.restart_workers();
        cluster
    }

    /// The path of the next log file.
    fn next_log(&mut self, process_name: &str) -> PathBuf {
        self.log_count += 1;
        self.log_folder.join(format!("{:03}-{process_name}.log", self.log_count))
    }

    fn start_coordinator(&mut self) {
        let log = self.next_log("coordinator");
        let mut command = command("coordinator");
        command.arg("serve").arg("--config").arg(&self.run_file).args(["--http", "127.0.0.1:0"]);
        let mut process = Process::start(command.args(["--listen", &format!("127.0.0.1:{}", self.port)]), log);
        process.read_line();
        self.coordinator = Some(process);
    }

    /// Kills the coordinator, and restarts it after `downtime`.
    pub fn restart_coordinator(&mut self, downtime: Duration) {
        self.coordinator = None;
        std::thread::sleep(downtime);
        self.start_coordinator();
    }

    /// Suspends the coordinator for `duration`.
    pub fn suspend_coordinator(&mut self, duration: Duration) {
        let coordinator = self.coordinator.as_ref().expect("the coordinator runs");
        coordinator.signal("STOP");
        std::thread::sleep(duration);
        coordinator.signal("CONT");
    }

    /// Sends a signal to a worker. If the worker ends, [`Self::restart_workers`] restarts it after
    /// `downtime`.
    pub fn signal_worker(&mut self, worker_id: u32, signal: &str, downtime: Duration) {
        if let Some(worker) = self.workers.get(&worker_id) {
            worker.signal(signal);
            self.start_times.insert(worker_id, Instant::now() + downtime);
        }
    }

    /// Restarts the workers that have ended and whose start time has come.
    pub fn restart_workers(&mut self) {
        let ended = |(worker_id, worker): (&u32, &mut Process)| worker.has_ended().then_some(*worker_id);
        let ended: Vec<u32> = self.workers.iter_mut().filter_map(ended).collect();
        for worker_id in ended {
            self.workers.remove(&worker_id);
            self.start_times.entry(worker_id).or_insert_with(Instant::now);
        }
        let is_due = |(worker_id, start_time): (&u32, &Instant)| (*start_time <= Instant::now()).then_some(*worker_id);
        for worker_id in self.start_times.iter().filter_map(is_due).collect::<Vec<_>>() {
            self.start_times.remove(&worker_id);
            if !self.workers.contains_key(&worker_id) {
                let log = self.next_log(&format!("worker-{worker_id}"));
                let mut command = command("worker");
                command.args(["join", "--coordinator", &format!("http://127.0.0.1:{}", self.port)]);
                let command =
                    command.args(["--rank", &worker_id.to_string(), "--threads", "1", "--join-timeout", "30"]);
                self.workers.insert(worker_id, Process::start(command, log));
            }
        }
    }

    /// Waits for the end of the run. Panics if no step is recorded for too long.
    /// `last_step_after(time)` is the time of the last step that was recorded after `time`. Returns
    /// the hashes of the parameters of all workers that take part at the end.
    pub fn finish(&mut self, last_step_after: impl Fn(f64) -> Option<f64>) -> Vec<String> {
        let mut last_step_at = Some(0.0);
        while let Some(previous) = last_step_at {
            last_step_at = wait_for("a step, or the end of the run", || {
                if self.coordinator.as_mut().is_none_or(Process::has_ended) {
                    return Some(None);
                }
                self.restart_workers();
                last_step_after(previous).map(Some)
            });
        }
        let coordinator = self.coordinator.take().expect("the coordinator was started");
        let log = coordinator.log();
        assert!(coordinator.succeeds(), "{log}");
        let workers = std::mem::take(&mut self.workers).into_values();
        // A worker that tries to join after the end is refused, and prints no hash.
        workers.filter_map(|worker| parameters_sha256(&worker.finish().1)).collect()
    }
}

/// A free port outside the range of outgoing connections, different in each call.
fn free_port() -> u16 {
    static NEXT_OFFSET: AtomicU16 = AtomicU16::new(0);
    let first = 20_000 + (std::process::id() % 8_000) as u16;
    let mut ports = std::iter::repeat_with(|| first + NEXT_OFFSET.fetch_add(1, Ordering::Relaxed)).take(1_000);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(is_free).expect("a port is free")
}
