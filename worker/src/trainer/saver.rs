//! The saver: a thread that hashes and writes snapshots, one at a time, and reports the results.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use checkpoint_store::Checkpoints;
use proto::v1::{self, worker_message::Message};

use super::Reports;
use super::snapshot::Snapshot;
use crate::memory;

/// How long an ending process waits for its last checkpoint.
const LAST_SAVE: Duration = Duration::from_secs(120);

/// A snapshot, and the directive that it was taken for.
pub struct Save {
    /// The generation of the directive.
    pub generation: u64,
    /// The number of the directive.
    pub checkpoint: u64,
    /// The name of the checkpoint.
    pub name: String,
    /// The copy of the state.
    pub snapshot: Snapshot,
}

/// The handle of the thread.
pub struct Saver {
    saves: SyncSender<Save>,
    saving: Saving,
}

impl Saver {
    /// Starts the thread.
    pub fn start(checkpoints: Arc<Checkpoints>, reports: Reports) -> Self {
        // A rendezvous channel: a second save waits for the first, so that there are at most two
        // snapshots in memory.
        let (saves, waiting) = sync_channel(0);
        let saving = Saving::default();
        let shared = saving.clone();
        std::thread::spawn(move || save_all(&waiting, &checkpoints, &reports, &shared));
        Self { saves, saving }
    }

    /// Queues a snapshot, to be saved and reported.
    ///
    /// # Errors
    /// The thread has died.
    pub fn save(&self, save: Save) -> Result<(), String> {
        let number = save.checkpoint;
        self.saving.change(|under_way| _ = under_way.insert(number));
        self.saves.send(save).map_err(|_| {
            self.saving.change(|under_way| _ = under_way.remove(&number));
            "the thread that saves checkpoints died".to_owned()
        })
    }

    /// The saves in progress.
    pub fn saving(&self) -> &Saving {
        &self.saving
    }
}

/// The numbers of the saves in progress. Clones share their state.
#[derive(Clone, Default)]
pub struct Saving(Arc<(Mutex<BTreeSet<u64>>, Condvar)>);

impl Saving {
    /// The latest save in progress.
    #[must_use]
    pub fn latest(&self) -> Option<u64> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).last().copied()
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<u64>)) {
        change(&mut self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.1.notify_all();
    }

    /// Waits until no save is in progress, for `LAST_SAVE` at most.
    pub fn wait(&self) {
        let (under_way, changed) = &*self.0;
        let guard = under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(guard, LAST_SAVE, |under_way| !under_way.is_empty());
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::warn!("a checkpoint is not written after {} s: not waiting for it any more", LAST_SAVE.as_secs());
        }
    }
}

fn save_all(saves: &Receiver<Save>, checkpoints: &Checkpoints, reports: &Reports, saving: &Saving) {
    while let Ok(Save { generation, checkpoint, name, snapshot }) = saves.recv() {
        let started = Instant::now();
        let parameters_sha256 = snapshot.parameters_sha256();
        let written = snapshot.write(checkpoints, &name, &parameters_sha256);
        // The next save may need the memory.
        drop(snapshot);
        memory::give_back();
        let report = match written {
            Ok(()) => {
                tracing::info!(name, seconds = started.elapsed().as_secs_f64(), "checkpoint saved");
                Message::CheckpointDone(v1::CheckpointDone { generation, checkpoint, parameters_sha256 })
            }
            Err(reason) => {
                tracing::warn!(name, reason, "checkpoint not saved");
                Message::CheckpointFailed(v1::CheckpointFailed { generation, checkpoint, reason })
            }
        };
        // Fails if the session is gone; then the report is not needed.
        _ = reports.blocking_send(report);
        saving.change(|under_way| _ = under_way.remove(&checkpoint));
    }
}

#[cfg(test)]
mod tests;
