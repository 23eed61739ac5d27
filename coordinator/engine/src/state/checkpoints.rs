//! The checkpoints of the run, and the save in progress.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    checkpoint::Checkpoint,
    plan::{Plan, Position},
    types::{Time, WorkerId},
};

/// The saved states of the run.
#[derive(Debug)]
pub struct Checkpoints {
    /// The checkpoints from which the run can continue.
    pub saved: BTreeMap<Position, Checkpoint>,
    /// The last checkpoint of each stage that ended with an earlier state. It is kept for the user;
    /// the run never resumes from it.
    pub superseded: Vec<Checkpoint>,
    /// The save in progress.
    pub in_progress: Option<SaveInProgress>,
    /// The last attempt to save, if it failed.
    pub failed: Option<FailedSave>,
    /// The positions whose states this coordinator process has ordered the members to save.
    attempts: BTreeSet<Position>,
    /// Whether the run had no generation before this coordinator process, so that no earlier
    /// process can have ordered a save.
    is_fresh: bool,
    /// Names of checkpoints that an earlier coordinator process began to save or delete, and did
    /// not finish.
    pub unfinished: BTreeSet<String>,
}

/// The save in progress.
#[derive(Debug)]
pub struct SaveInProgress {
    /// The number of the save in directives.
    pub number: u64,
    /// The position of the state that is saved.
    pub position: Position,
    /// The name of the checkpoint.
    pub name: String,
    /// The generation that was ordered to save.
    pub generation: u64,
    /// Whether the save is cancelled: its state does not belong to the run's history any more, or
    /// its writer is removed.
    pub is_cancelled: bool,
    /// The member that writes the files.
    pub writer: WorkerId,
    /// The members that have not reported yet.
    pub pending: BTreeSet<WorkerId>,
    /// The hash of each member's parameters.
    pub hashes: BTreeMap<WorkerId, String>,
}

/// The last attempt to save, which failed. Training waits until an attempt succeeds.
#[derive(Debug)]
pub struct FailedSave {
    /// Why it failed, as a message for display.
    pub reason: String,
    /// The time of the next attempt.
    pub retry_at: Time,
}

impl Checkpoints {
    /// The checkpoints that earlier coordinator processes have left. `is_fresh` says that there was
    /// no earlier process with a generation.
    #[must_use]
    pub fn new(
        saved: Vec<Checkpoint>,
        superseded: Vec<Checkpoint>,
        unfinished: BTreeSet<String>,
        is_fresh: bool,
    ) -> Self {
        let saved = saved.into_iter().map(|checkpoint| (checkpoint.position, checkpoint)).collect();
        let attempts = BTreeSet::new();
        Self { saved, superseded, in_progress: None, failed: None, attempts, is_fresh, unfinished }
    }

    /// Whether a state can be restored without a member: from the seed or from a checkpoint.
    #[must_use]
    pub fn can_restore(&self, position: Position) -> bool {
        position == Position::default() || self.saved.contains_key(&position)
    }

    /// Whether this member has not reported on the save in progress.
    #[must_use]
    pub fn is_pending(&self, worker_id: WorkerId) -> bool {
        self.in_progress.as_ref().is_some_and(|saving| saving.pending.contains(&worker_id))
    }

    /// The position of the save in progress.
    #[must_use]
    pub fn saving_position(&self) -> Option<Position> {
        self.in_progress.as_ref().map(|saving| saving.position)
    }

    /// A checkpoint name that no other writer can be using at this time. A worker that lost its
    /// connection, or that an earlier coordinator process ordered to save, may still be writing a
    /// checkpoint of the same position. Therefore all attempts except a new run's first one at a
    /// position have the number of the generation in the name.
    pub fn unique_name(&mut self, plan: &Plan, position: Position, generation: u64) -> String {
        let is_first_attempt = self.attempts.insert(position) && self.is_fresh;
        let attempt = (!is_first_attempt).then_some(generation);
        position.checkpoint_name(&plan.stage(position).name, attempt)
    }
}
