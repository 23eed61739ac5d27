//! What does not change while a coordinator process serves a run.

use std::time::Duration;

use config::RunFile;

/// The settings of a run, and the identity of the run and of the coordinator process.
#[derive(Debug)]
pub struct Settings {
    /// The run's id: random and unique.
    pub run_id: String,
    /// The term of this coordinator process, a random number; see [`term_log`](crate::term_log).
    pub term: u64,
    /// The run file.
    pub file: RunFile,
    /// The run file as JSON, as it is sent to workers.
    pub file_json: String,
}

impl Settings {
    /// How long a member may send no message.
    #[must_use]
    pub fn heartbeat_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.file.control.heartbeat_timeout).unwrap_or(Duration::MAX)
    }

    /// How long a member may make no progress while others wait for it.
    #[must_use]
    pub fn stall_timeout(&self) -> Duration {
        Duration::try_from_secs_f64(self.file.control.stall_timeout).unwrap_or(Duration::MAX)
    }
}
