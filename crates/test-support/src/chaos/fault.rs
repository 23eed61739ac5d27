use std::time::Duration;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::cluster::Cluster;

/// The longest time that a process is down.
const MAX_AWAY: Duration = Duration::from_millis(500);

/// Something that happens to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL to a worker; it is started again.
    Kill,
    /// SIGSTOP to a worker until it is lost; then SIGCONT.
    Stop,
    /// SIGTERM to a worker: it leaves, and is started again.
    Leave,
    /// SIGKILL to the coordinator; it is started again.
    KillCoordinator,
    /// SIGSTOP to the coordinator for a while, for longer than silence is borne or not; then SIGCONT.
    StopCoordinator,
}

impl Fault {
    /// Injects the fault. Returns whether that ends the generation.
    pub fn strike(self, cluster: &mut Cluster, victim: u32, random: &mut ChaCha8Rng) -> bool {
        let away = random.random_range(Duration::ZERO..MAX_AWAY);
        match self {
            Self::Kill => cluster.signal(victim, "KILL", away),
            Self::Leave => cluster.signal(victim, "TERM", away),
            Self::Stop => cluster.signal(victim, "STOP", away),
            Self::KillCoordinator => cluster.restart_coordinator(away),
            Self::StopCoordinator => cluster.stop_coordinator(8 * away),
        }
        self != Self::StopCoordinator
    }

    /// Ends a fault that does not end by itself.
    pub fn relieve(self, cluster: &mut Cluster, victim: u32) {
        if self == Self::Stop {
            cluster.signal(victim, "CONT", Duration::ZERO);
        }
    }
}
