//! The checkpoint saver: a thread that hashes and writes snapshots, one at a time, and reports the
//! results.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use checkpoint_store::Checkpoints;
use proto::v1::{self, worker_message::Message};

use super::commands::ReportSender;
use super::snapshot::Snapshot;
use crate::errors;
use crate::host_memory;

/// How long [`PendingSaves::wait`] waits.
const FINAL_SAVE_TIMEOUT: Duration = Duration::from_secs(120);

/// A snapshot to save, and the Checkpoint directive that requested it.
pub struct SaveRequest {
    /// The generation of the directive.
    pub generation: u64,
    /// The number of the save, for the report.
    pub checkpoint: u64,
    /// The name of the checkpoint.
    pub name: String,
    /// The copy of the training state.
    pub snapshot: Snapshot,
}

/// The handle of the thread that saves checkpoints.
pub struct CheckpointSaver {
    queue: SyncSender<SaveRequest>,
    pending_saves: PendingSaves,
}

impl CheckpointSaver {
    /// Starts the thread.
    pub fn start(checkpoints: Arc<Checkpoints>, reports: ReportSender) -> Self {
        // A channel without a buffer: a second save waits for the first, so that there are at most
        // two snapshots in memory.
        let (queue, requests) = sync_channel(0);
        let pending_saves = PendingSaves::default();
        let thread_pending_saves = pending_saves.clone();
        std::thread::spawn(move || write_snapshots(&requests, &checkpoints, &reports, &thread_pending_saves));
        Self { queue, pending_saves }
    }

    /// Queues a snapshot, to be saved and reported.
    ///
    /// # Errors
    /// The thread has panicked.
    pub fn save(&self, save: SaveRequest) -> Result<()> {
        let number = save.checkpoint;
        self.pending_saves.update(|numbers| _ = numbers.insert(number));
        self.queue.send(save).map_err(|_| {
            self.pending_saves.update(|numbers| _ = numbers.remove(&number));
            anyhow!("the thread that saves checkpoints panicked")
        })
    }

    /// The saves that have not completed.
    pub fn pending_saves(&self) -> &PendingSaves {
        &self.pending_saves
    }
}

/// The numbers of the checkpoints that are being saved. Clones share one set.
#[derive(Clone, Default)]
pub struct PendingSaves(Arc<(Mutex<BTreeSet<u64>>, Condvar)>);

impl PendingSaves {
    /// The number of the latest of these checkpoints; none if no checkpoint is being saved.
    #[must_use]
    pub fn latest(&self) -> Option<u64> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    fn update(&self, change: impl FnOnce(&mut BTreeSet<u64>)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Waits until all saves have completed, for `FINAL_SAVE_TIMEOUT` at most. Called before this
    /// process ends, and before it loads the models again.
    pub fn wait(&self) {
        let (numbers, changed) = &*self.0;
        let guard = numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(guard, FINAL_SAVE_TIMEOUT, |numbers| !numbers.is_empty());
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            let seconds = FINAL_SAVE_TIMEOUT.as_secs();
            tracing::warn!("a checkpoint is not written after {seconds} s: ending without it");
        }
    }
}

/// The body of the thread: writes snapshots and reports the results until the queue is closed.
fn write_snapshots(
    requests: &Receiver<SaveRequest>,
    checkpoints: &Checkpoints,
    reports: &ReportSender,
    pending_saves: &PendingSaves,
) {
    while let Ok(SaveRequest { generation, checkpoint, name, snapshot }) = requests.recv() {
        let started = Instant::now();
        let parameters_sha256 = snapshot.parameters_sha256();
        let written = snapshot.write(checkpoints, &name, &parameters_sha256);
        // The next save may need the memory.
        drop(snapshot);
        host_memory::trim();
        let report = match written {
            Ok(()) => {
                tracing::info!(name, seconds = started.elapsed().as_secs_f64(), "checkpoint saved");
                Message::CheckpointDone(v1::CheckpointDone { generation, checkpoint, parameters_sha256 })
            }
            Err(error) => {
                let reason = errors::one_line(&error);
                tracing::warn!(name, reason, "checkpoint not saved");
                Message::CheckpointFailed(v1::CheckpointFailed { generation, checkpoint, reason })
            }
        };
        // Fails if the session has ended. Then the report is not needed.
        _ = reports.blocking_send(report);
        pending_saves.update(|numbers| _ = numbers.remove(&checkpoint));
    }
}

#[cfg(test)]
mod tests;
