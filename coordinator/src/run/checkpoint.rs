//! Checkpoints: one member, the writer, writes the training state while training continues. All
//! members report the hash of their parameters. The coordinator deletes checkpoints that are no
//! longer needed.
//!
//! ```text
//!   Checkpoint directive          CheckpointDone message           not needed
//!   to all members                from all members                 any more
//!   --------------------> saving -----------------------> saved -------------> deleted
//!                         |    |
//!   the writer is removed,|    | CheckpointFailed message from the writer
//!   or the state is given |    v
//!   up                    |  failed: no steps are granted, and the save is retried
//!                         v          until it succeeds
//!                     cancelled ------------------------> deleted
//!                                  all members
//!                                  have reported
//! ```
//!
//! A save belongs to the run, not to a generation: all members copied their states at the same
//! step, and the writer may be in a later generation when it finishes. Only one save is in progress
//! at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Outcome, ProtocolViolation, Run, Time, WorkerId, one_line,
    plan::{Boundary, Position},
    record::{Checkpoint, EventKind, Record, StateSource},
};

/// Maximal length of a hash from a worker, in bytes. SHA-256 as hex has 64.
const MAX_HASH_BYTES: usize = 128;
/// The interval between attempts to save after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// The save in progress.
#[derive(Debug)]
pub(super) struct SaveInProgress {
    /// The number of the save in directives.
    number: u64,
    /// The position of the state that is saved.
    pub position: Position,
    /// The name of the checkpoint.
    pub name: String,
    /// The generation that was ordered to save.
    generation: u64,
    /// Whether the save is cancelled: its state does not belong to the run's history any more, or
    /// its writer is removed.
    pub is_cancelled: bool,
    /// The member that writes the files.
    pub writer: WorkerId,
    /// The members that have not reported yet.
    pending: BTreeSet<WorkerId>,
    /// The hash of each member's parameters.
    hashes: BTreeMap<WorkerId, String>,
}

/// The last attempt to save, which failed. Training waits until an attempt succeeds.
#[derive(Debug)]
pub(super) struct FailedSave {
    /// Why it failed, as a message for display.
    pub reason: String,
    /// The time of the next attempt.
    retry_at: Time,
}

impl SaveInProgress {
    /// Whether this member has not reported yet.
    pub fn is_pending(&self, worker_id: WorkerId) -> bool {
        self.pending.contains(&worker_id)
    }
}

impl Run {
    /// Orders the members to save the state at `position`, the last granted one. The member with
    /// the lowest id writes it.
    pub(super) fn start_save(&mut self, position: Position) {
        let number = self.next_directive_number();
        let name = self.unique_checkpoint_name(position);
        let Some(generation) = &self.generation else { return };
        let Some(writer) = generation.members.first().copied() else { return };
        self.saving = Some(SaveInProgress {
            number,
            position,
            name: name.clone(),
            generation: generation.number,
            is_cancelled: false,
            writer,
            pending: generation.members.iter().copied().collect(),
            hashes: BTreeMap::new(),
        });
        self.passed_boundaries.insert((position, Boundary::Checkpoint));
        // The service adds the head of the journal when it sends the directive.
        self.broadcast(|_, _| {
            Directive::Checkpoint(v1::Checkpoint { checkpoint: number, name: name.clone(), journal: None })
        });
    }

    /// The base name of files that belong to a state, such as the captions of its evaluation.
    pub(super) fn state_name(&self, position: Position) -> String {
        position.checkpoint_name(&self.plan.stage(position).name, None)
    }

    /// A checkpoint name that no other writer can be using at this time. A worker that lost its
    /// connection, or that an earlier coordinator process ordered to save, may still be writing a
    /// checkpoint of the same position. Therefore all attempts except a new run's first one at a
    /// position have the number of the generation in the name.
    fn unique_checkpoint_name(&mut self, position: Position) -> String {
        let is_first_attempt = self.save_attempts.insert(position) && self.is_fresh;
        let attempt = (!is_first_attempt).then_some(self.last_generation);
        position.checkpoint_name(&self.plan.stage(position).name, attempt)
    }

    /// Whether the state at `granted` is saved. If it is not, orders the members to save it, unless
    /// a save is in progress.
    pub(super) fn ensure_saved(&mut self, granted: Position) -> bool {
        if self.saving.is_some() {
            return false;
        }
        if self.is_saved(granted) {
            return true;
        }
        self.start_save(granted);
        false
    }

    /// Retries a failed save if the retry is due. Returns true if the state turns out to be saved
    /// already.
    pub(super) fn retry_save(&mut self, now: Time, granted: Position) -> bool {
        let is_due = self.failed_save.as_ref().is_some_and(|failed| now >= failed.retry_at);
        if !is_due || self.saving.is_some() {
            return false;
        }
        // The run may have gone back to an earlier state, whose checkpoint exists.
        if self.checkpoints.contains_key(&granted) {
            self.clear_failed_save(granted);
            return true;
        }
        self.start_save(granted);
        false
    }

    /// Records that the state at `position` is saved after a failure, if there was one.
    fn clear_failed_save(&mut self, position: Position) {
        if let Some(failed) = self.failed_save.take() {
            let detail = json!({ "at": position.to_string(), "reason": failed.reason });
            self.record_event(EventKind::SavedAgain, detail);
        }
    }

    /// Handles `CheckpointDone`: a member has hashed its state, and written it if it is the writer.
    pub(super) fn handle_checkpoint_done(
        &mut self,
        now: Time,
        worker_id: WorkerId,
        report: v1::CheckpointDone,
    ) -> Result<(), ProtocolViolation> {
        let hash = report.parameters_sha256;
        if hash.is_empty() || hash.len() > MAX_HASH_BYTES {
            return Err(ProtocolViolation::new("a checkpoint whose hash of the parameters is missing or too long"));
        }
        let (generation, number) = (report.generation, report.checkpoint);
        let Some(saving) = self.find_save(worker_id, generation, number)? else { return Ok(()) };
        saving.pending.remove(&worker_id);
        saving.hashes.insert(worker_id, hash);
        self.try_complete_save(now);
        Ok(())
    }

    /// Handles `CheckpointFailed`: the writer could not write the state.
    pub(super) fn handle_checkpoint_failed(
        &mut self,
        now: Time,
        worker_id: WorkerId,
        report: &v1::CheckpointFailed,
    ) -> Result<(), ProtocolViolation> {
        let (generation, number) = (report.generation, report.checkpoint);
        let Some(saving) = self.find_save(worker_id, generation, number)? else { return Ok(()) };
        if saving.writer != worker_id {
            return Err(ProtocolViolation::new("it failed to write a checkpoint that another worker writes"));
        }
        let reason = format!("cannot save {}: {}", saving.name, one_line(&report.reason));
        // A failed save leaves no files to delete.
        let Some(SaveInProgress { position, is_cancelled: false, .. }) = self.saving.take() else { return Ok(()) };
        self.passed_boundaries.remove(&(position, Boundary::Checkpoint));
        if self.failed_save.is_none() {
            self.record_event(EventKind::SaveFailed, json!({ "rank": worker_id, "reason": reason }));
        }
        self.failed_save = Some(FailedSave { reason, retry_at: now.saturating_add(RETRY_INTERVAL) });
        Ok(())
    }

    /// The save in progress, if a member's first report on a save is about it; none if the report
    /// is about an earlier save, or repeated. Fails if no directive with this number was ever sent.
    fn find_save(
        &mut self,
        worker_id: WorkerId,
        generation: u64,
        number: u64,
    ) -> Result<Option<&mut SaveInProgress>, ProtocolViolation> {
        if number > self.last_directive {
            return Err(ProtocolViolation::new(format!("there was no directive to save checkpoint {number}")));
        }
        let is_reported = |saving: &&mut SaveInProgress| {
            (saving.generation, saving.number) == (generation, number) && saving.pending.contains(&worker_id)
        };
        Ok(self.saving.as_mut().filter(is_reported))
    }

    /// Removes a member that will not report on the save in progress. `unfinished_save` is the
    /// number of the save that the member still executes, if any. If that is the save in progress,
    /// the member will report on it, and is not removed.
    pub(super) fn remove_from_save(&mut self, now: Time, worker_id: WorkerId, unfinished_save: Option<u64>) {
        let Some(saving) = self.saving.as_mut().filter(|saving| unfinished_save != Some(saving.number)) else { return };
        if !saving.pending.remove(&worker_id) {
            return;
        }
        if saving.writer == worker_id {
            self.cancel_save();
        }
        self.try_complete_save(now);
    }

    /// Cancels the save in progress if its position is beyond `end`: its state is given up.
    pub(super) fn cancel_save_beyond(&mut self, end: Position) {
        if self.saving.as_ref().is_some_and(|saving| saving.position > end) {
            self.cancel_save();
        }
    }

    /// Cancels the save in progress: its checkpoint will be deleted. The members finish the save
    /// first, and no other save begins before that.
    fn cancel_save(&mut self) {
        if let Some(saving) = self.saving.as_mut().filter(|saving| !saving.is_cancelled) {
            saving.is_cancelled = true;
            self.passed_boundaries.remove(&(saving.position, Boundary::Checkpoint));
        }
    }

    /// Completes the save in progress if all members have reported.
    fn try_complete_save(&mut self, now: Time) {
        let Some(saving) = self.saving.take_if(|saving| saving.pending.is_empty()) else { return };
        let SaveInProgress { position, name, generation, hashes, is_cancelled, .. } = saving;
        if is_cancelled {
            self.actions.push(Action::DeleteCheckpoint(name));
            return;
        }
        let hash = hashes.values().next().cloned().unwrap_or_default();
        if hashes.values().any(|other| *other != hash) {
            let describe = |(id, hash): (&WorkerId, &String)| format!("worker {id} {}", hash.escape_debug());
            let list: Vec<String> = hashes.iter().map(describe).collect();
            let reason = format!("the workers' parameters differ at {position}: {}", list.join(", "));
            let detail = json!({ "stage": position.stage, "step": position.step, "hashes": hashes });
            self.record_event(EventKind::Diverged, detail);
            self.end_run(now, Outcome::Failed(reason));
            return;
        }
        self.progress_count += 1;
        let checkpoint = Checkpoint { position, generation, run_id: self.id.clone(), name, parameters_sha256: hash };
        self.checkpoints.insert(position, checkpoint.clone());
        self.record(Record::Saved(checkpoint));
        self.clear_failed_save(position);
        self.delete_old_checkpoints();
    }

    /// Discards the checkpoint from which the generation starts, because a member reports that the
    /// checkpoint is damaged. The next generation starts from an earlier checkpoint.
    pub(super) fn discard_damaged_checkpoint(
        &mut self,
        worker_id: WorkerId,
        name: &str,
        reason: &str,
    ) -> Result<(), ProtocolViolation> {
        let position =
            self.checkpoints.iter().find(|(_, checkpoint)| checkpoint.name == name).map(|(position, _)| *position);
        let (Some(position), Some(generation)) = (position, &self.generation) else {
            return Err(ProtocolViolation::new("it reported a damaged checkpoint that the run does not have"));
        };
        let is_rank_0 = generation.members.first() == Some(&worker_id);
        if !is_rank_0 || generation.source != StateSource::Checkpoint(name.to_owned()) {
            return Err(ProtocolViolation::new("it reported a damaged checkpoint that it was not ordered to read"));
        }
        self.checkpoints.remove(&position);
        self.passed_boundaries.remove(&(position, Boundary::Checkpoint));
        self.progress_count += 1;
        let detail = json!({ "rank": worker_id, "checkpoint": name, "reason": reason });
        self.record_event(EventKind::Damaged, detail);
        self.record(Record::Damaged(name.to_owned()));
        Ok(())
    }

    /// Deletes all checkpoints except these: the newest ones, as many as `checkpoints.keep`; the
    /// last one of each stage; the best one of the current stage; and those that a guard rule may
    /// roll back to. The last checkpoint of an ended stage is the one that the stage ended with.
    /// If that is not the stage's last step, the checkpoint of the last step is kept in
    /// `superseded_checkpoints`.
    pub(super) fn delete_old_checkpoints(&mut self) {
        let keep = self.file.checkpoints.keep as usize;
        let newest: BTreeSet<Position> = self.checkpoints.keys().rev().take(keep).copied().collect();
        let last: BTreeMap<u32, Position> =
            self.checkpoints.keys().map(|position| (position.stage, *position)).collect();
        let mut needed = self.stage_view().fallback_positions();
        needed.extend(self.stage_view().best_state().map(|best| best.position));
        let is_kept = |position: &Position| {
            newest.contains(position) || last.get(&position.stage) == Some(position) || needed.contains(position)
        };
        self.delete_checkpoints(|position| !is_kept(position));
    }

    /// Deletes the checkpoints that an earlier coordinator process began to save or delete, and did
    /// not finish.
    pub(super) fn delete_unfinished_checkpoints(&mut self) {
        let names = std::mem::take(&mut self.unfinished_checkpoints);
        self.actions.extend(names.into_iter().map(Action::DeleteCheckpoint));
    }

    /// Deletes the checkpoints at the positions for which `must_delete` is true.
    pub(super) fn delete_checkpoints(&mut self, must_delete: impl Fn(&Position) -> bool) {
        let positions: Vec<Position> =
            self.checkpoints.keys().filter(|position| must_delete(position)).copied().collect();
        let deleted: Vec<_> = positions.iter().filter_map(|position| self.checkpoints.remove(position)).collect();
        for checkpoint in deleted {
            self.record(Record::Deleting(checkpoint.name.clone()));
            self.actions.push(Action::DeleteCheckpoint(checkpoint.name));
        }
    }
}
