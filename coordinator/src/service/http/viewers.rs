//! The open streams of viewers, and the last snapshot that they got. A viewer is an open web page.

use std::sync::Arc;

use dico_engine::Outcome;
use serde_json::Value;
use tokio::sync::watch;

use crate::service::fair_limit::StreamLimit;

/// Maximal number of viewers.
pub const MAX_VIEWERS: usize = 64;

/// The last snapshot as JSON; `None` before the first one.
pub type SnapshotJson = Option<Arc<str>>;

/// The open streams of viewers.
pub struct Viewers {
    pub streams: StreamLimit,
    /// The sender of snapshots; `None` once the coordinator is shutting down.
    snapshots: std::sync::Mutex<Option<watch::Sender<SnapshotJson>>>,
}

impl Default for Viewers {
    fn default() -> Self {
        let snapshots = std::sync::Mutex::new(Some(watch::channel(None).0));
        Self { streams: StreamLimit::new(MAX_VIEWERS), snapshots }
    }
}

impl Viewers {
    /// Calls `use_sender` with the sender of snapshots, unless the coordinator is shutting down.
    pub fn with_sender<T>(&self, use_sender: impl FnOnce(&watch::Sender<SnapshotJson>) -> T) -> Option<T> {
        self.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).as_ref().map(use_sender)
    }

    /// Sends the last snapshot once more, with the state in which the coordinator process ends.
    pub fn send_outcome(&self, outcome: &Outcome) {
        let (state, reason) = match outcome {
            Outcome::Finished => ("finished", ""),
            Outcome::Failed(reason) => ("failed", reason.as_str()),
            Outcome::Stopped => {
                ("waiting", "the coordinator was stopped: serve the run file again to continue the run")
            }
        };
        self.with_sender(|sender| {
            sender.send_if_modified(|snapshot| {
                let last = snapshot.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok());
                let Some(Value::Object(mut last)) = last else { return false };
                // The snapshot may be older than the last step.
                if let (Outcome::Finished, Some(steps)) = (outcome, last.get("steps").cloned()) {
                    last.insert("step".into(), steps);
                }
                last.extend([("state".into(), state.into()), ("reason".into(), reason.into())]);
                *snapshot = Some(Value::Object(last).to_string().into());
                true
            })
        });
    }

    /// Ends all streams.
    pub fn close(&self) {
        self.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}
