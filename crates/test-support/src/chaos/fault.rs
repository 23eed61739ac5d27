use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::cluster::Cluster;

/// The maximal time between the end and the restart of a process.
const MAX_DOWNTIME: Duration = Duration::from_millis(500);

/// A kind of fault. The names are values of `chaos --kinds`, and keys of the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL to a worker, which is then restarted.
    Kill,
    /// SIGSTOP to a worker until it counts as failed, then SIGCONT.
    Stop,
    /// SIGTERM to a worker, which leaves and is then restarted.
    Leave,
    /// SIGKILL to the coordinator, which is then restarted.
    KillCoordinator,
    /// SIGSTOP to the coordinator, then SIGCONT after a time below or above the heartbeat timeout.
    StopCoordinator,
}

impl Fault {
    /// Injects the fault. A fault of a worker hits worker `worker_id`. Returns whether the fault is
    /// certain to end the generation: a suspended coordinator may resume before a timeout.
    pub fn inject(self, cluster: &mut Cluster, worker_id: u32, random: &mut ChaCha8Rng) -> bool {
        let downtime = random.random_range(Duration::ZERO..MAX_DOWNTIME);
        match self {
            Self::Kill => cluster.signal_worker(worker_id, "KILL", downtime),
            Self::Leave => cluster.signal_worker(worker_id, "TERM", downtime),
            Self::Stop => cluster.signal_worker(worker_id, "STOP", downtime),
            Self::KillCoordinator => cluster.restart_coordinator(downtime),
            Self::StopCoordinator => cluster.suspend_coordinator(8 * downtime),
        }
        self != Self::StopCoordinator
    }

    /// Ends the fault if it does not end by itself.
    pub fn clear(self, cluster: &mut Cluster, worker_id: u32) {
        if self == Self::Stop {
            cluster.signal_worker(worker_id, "CONT", Duration::ZERO);
        }
    }
}
