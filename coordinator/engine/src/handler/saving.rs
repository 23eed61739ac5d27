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

use crate::{
    action::Action,
    checkpoint::Checkpoint,
    event_kind::EventKind,
    membership::Membership,
    outcome::Outcome,
    output::{Effect, Output},
    plan::{Boundary, Position},
    record::{Record, StateSource},
    settings::Settings,
    state::{
        State,
        checkpoints::{Checkpoints, FailedSave, SaveInProgress},
        generations::Generations,
        history::History,
        stage::StageState,
    },
    types::{Time, WorkerId},
    violation::{ProtocolViolation, one_line},
};

/// Maximal length of a hash from a worker, in bytes. SHA-256 as hex has 64.
const MAX_HASH_BYTES: usize = 128;
/// The interval between attempts to save after a failure.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Saves states, and deletes checkpoints.
pub struct SavingHandler<'a> {
    settings: &'a Settings,
    members: &'a Membership,
    generations: &'a mut Generations,
    history: &'a mut History,
    stage: &'a StageState,
    checkpoints: &'a mut Checkpoints,
    output: &'a mut Output,
}

impl<'a> SavingHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { settings, members, generations, history, stage, checkpoints, .. } = state;
        Self { settings, members, generations, history, stage, checkpoints, output }
    }

    /// Orders the members of the generation to save the state at the granted position. The member
    /// with the lowest id writes it.
    pub fn start(&mut self) {
        let number = self.generations.next_directive_number();
        let last_generation = self.generations.last_number;
        let Some(generation) = &self.generations.current else { return };
        let Some(writer) = generation.members.first().copied() else { return };
        let position = generation.granted;
        let name = self.checkpoints.unique_name(&self.history.plan, position, last_generation);
        self.checkpoints.in_progress = Some(SaveInProgress {
            number,
            position,
            name: name.clone(),
            generation: generation.number,
            is_cancelled: false,
            writer,
            pending: generation.members.iter().copied().collect(),
            hashes: BTreeMap::new(),
        });
        self.history.set_passed(position, Boundary::Checkpoint, true);
        for member in generation.members.iter().filter_map(|id| self.members.get(*id)) {
            // The service adds the head of the journal when it sends the directive.
            let checkpoint = v1::Checkpoint { checkpoint: number, name: name.clone(), journal: None };
            self.output.send(member.session, generation.number, Directive::Checkpoint(checkpoint));
        }
    }

    /// Records that the state at `position` is saved after a failure, if there was one.
    pub fn forget_failure(&mut self, position: Position) {
        if let Some(failed) = self.checkpoints.failed.take() {
            let detail = json!({ "at": position.to_string(), "reason": failed.reason });
            self.output.record_event(EventKind::SavedAgain, detail);
        }
    }

    /// Handles `CheckpointDone`: a member has hashed its state, and written it if it is the writer.
    ///
    /// # Errors
    /// The hash is missing or too long, or no such save was ordered.
    pub fn done(&mut self, worker_id: WorkerId, report: v1::CheckpointDone) -> Result<(), ProtocolViolation> {
        let hash = report.parameters_sha256;
        if hash.is_empty() || hash.len() > MAX_HASH_BYTES {
            return Err(ProtocolViolation::new("a checkpoint whose hash of the parameters is missing or too long"));
        }
        let (generation, number) = (report.generation, report.checkpoint);
        let Some(saving) = self.find_save(worker_id, generation, number)? else { return Ok(()) };
        saving.pending.remove(&worker_id);
        saving.hashes.insert(worker_id, hash);
        self.try_complete();
        Ok(())
    }

    /// Handles `CheckpointFailed`: the writer could not write the state.
    ///
    /// # Errors
    /// The member is not the writer, or no such save was ordered.
    pub fn save_failed(
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
        let failed_save = self.checkpoints.in_progress.take();
        let Some(SaveInProgress { position, is_cancelled: false, .. }) = failed_save else { return Ok(()) };
        self.history.set_passed(position, Boundary::Checkpoint, false);
        if self.checkpoints.failed.is_none() {
            self.output.record_event(EventKind::SaveFailed, json!({ "rank": worker_id, "reason": reason }));
        }
        self.checkpoints.failed = Some(FailedSave { reason, retry_at: now.saturating_add(RETRY_INTERVAL) });
        Ok(())
    }

    /// The save in progress, if a member's first report on a save is about it; none if the report
    /// is about an earlier save, or repeated.
    ///
    /// # Errors
    /// The number is above that of the last directive.
    fn find_save(
        &mut self,
        worker_id: WorkerId,
        generation: u64,
        number: u64,
    ) -> Result<Option<&mut SaveInProgress>, ProtocolViolation> {
        if number > self.generations.last_directive {
            return Err(ProtocolViolation::new(format!("there was no directive to save checkpoint {number}")));
        }
        let is_reported = |saving: &&mut SaveInProgress| {
            (saving.generation, saving.number) == (generation, number) && saving.pending.contains(&worker_id)
        };
        Ok(self.checkpoints.in_progress.as_mut().filter(is_reported))
    }

    /// Excludes a member that will not report on the save in progress. `unfinished_save` is the
    /// number of the save that the member still executes, if any. If that is the save in progress,
    /// the member will report on it, and is not excluded.
    pub fn exclude_member(&mut self, worker_id: WorkerId, unfinished_save: Option<u64>) {
        let in_progress = self.checkpoints.in_progress.as_mut();
        let Some(saving) = in_progress.filter(|saving| unfinished_save != Some(saving.number)) else { return };
        if !saving.pending.remove(&worker_id) {
            return;
        }
        if saving.writer == worker_id {
            self.cancel();
        }
        self.try_complete();
    }

    /// Cancels the save in progress if its position is beyond `end`: its state is given up.
    pub fn cancel_beyond(&mut self, end: Position) {
        if self.checkpoints.saving_position().is_some_and(|position| position > end) {
            self.cancel();
        }
    }

    /// Cancels the save in progress: its checkpoint will be deleted when the members have finished
    /// the save. No other save begins before that, or before the writer has failed to save.
    fn cancel(&mut self) {
        if let Some(saving) = self.checkpoints.in_progress.as_mut().filter(|saving| !saving.is_cancelled) {
            saving.is_cancelled = true;
            self.history.set_passed(saving.position, Boundary::Checkpoint, false);
        }
    }

    /// Completes the save in progress if all members have reported.
    fn try_complete(&mut self) {
        let Some(saving) = self.checkpoints.in_progress.take_if(|saving| saving.pending.is_empty()) else { return };
        let SaveInProgress { position, name, generation, hashes, is_cancelled, .. } = saving;
        if is_cancelled {
            self.output.push_action(Action::DeleteCheckpoint(name));
            return;
        }
        let hash = hashes.values().next().cloned().unwrap_or_default();
        if hashes.values().any(|other| *other != hash) {
            self.report_divergence(position, &hashes);
            return;
        }
        self.history.progress_count += 1;
        let run_id = self.settings.run_id.clone();
        let checkpoint = Checkpoint { position, generation, run_id, name, parameters_sha256: hash };
        self.checkpoints.saved.insert(position, checkpoint.clone());
        self.output.record(Record::Saved(checkpoint));
        self.forget_failure(position);
        self.delete_old();
    }

    /// Fails the run because the members' parameters differ.
    fn report_divergence(&mut self, position: Position, hashes: &BTreeMap<WorkerId, String>) {
        let describe = |(id, hash): (&WorkerId, &String)| format!("worker {id} {}", hash.escape_debug());
        let list: Vec<String> = hashes.iter().map(describe).collect();
        let detail = json!({ "stage": position.stage, "step": position.step, "hashes": hashes });
        self.output.record_event(EventKind::Diverged, detail);
        let reason = format!("the workers' parameters differ at {position}: {}", list.join(", "));
        self.output.add_effect(Effect::EndRun(Outcome::Failed(reason)));
    }

    /// Discards the checkpoint from which the generation starts, because a member reports that the
    /// checkpoint is damaged. The next generation starts from another state.
    ///
    /// # Errors
    /// The member was not ordered to read that checkpoint.
    pub fn discard_damaged(&mut self, worker_id: WorkerId, name: &str, reason: &str) -> Result<(), ProtocolViolation> {
        let has_name = |(_, checkpoint): &(&Position, &Checkpoint)| checkpoint.name == name;
        let position = self.checkpoints.saved.iter().find(has_name).map(|(position, _)| *position);
        let (Some(position), Some(generation)) = (position, &self.generations.current) else {
            return Err(ProtocolViolation::new("it reported a damaged checkpoint that the run does not have"));
        };
        let is_rank_0 = generation.members.first() == Some(&worker_id);
        if !is_rank_0 || generation.source != StateSource::Checkpoint(name.to_owned()) {
            return Err(ProtocolViolation::new("it reported a damaged checkpoint that it was not ordered to read"));
        }
        self.checkpoints.saved.remove(&position);
        self.history.set_passed(position, Boundary::Checkpoint, false);
        // The next attempt starts from another state, so earlier failures do not count any more.
        self.history.progress_count += 1;
        let detail = json!({ "rank": worker_id, "checkpoint": name, "reason": reason });
        self.output.record_event(EventKind::Damaged, detail);
        self.output.record(Record::Damaged(name.to_owned()));
        Ok(())
    }

    /// Gives up the states of a stage that are later than the one that the stage ended with. The
    /// last checkpoint of the stage is kept for the user.
    pub fn end_stage(&mut self, end: Position) {
        let last_saved = self.stage.view(self.history, self.checkpoints).last_saved_after(end);
        let superseded = last_saved.and_then(|position| self.checkpoints.saved.remove(&position));
        self.checkpoints.superseded.extend(superseded);
        self.delete(|other| *other > end);
        self.cancel_beyond(end);
    }

    /// Deletes all checkpoints except these: the newest ones, as many as `checkpoints.keep`; the
    /// last one of each stage; the best one of the current stage; and those that a guard rule may
    /// roll back to. The last checkpoint of an ended stage is the one that the stage ended with.
    /// If the stage has later checkpoints, the last one is kept in [`Checkpoints::superseded`].
    fn delete_old(&mut self) {
        let keep = self.settings.file.checkpoints.keep as usize;
        let saved = &self.checkpoints.saved;
        let newest: BTreeSet<Position> = saved.keys().rev().take(keep).copied().collect();
        let last: BTreeMap<u32, Position> = saved.keys().map(|position| (position.stage, *position)).collect();
        let view = self.stage.view(self.history, self.checkpoints);
        let mut needed = view.fallback_positions();
        needed.extend(view.best_state().map(|best| best.position));
        self.delete(|position| {
            let is_last = last.get(&position.stage) == Some(position);
            !newest.contains(position) && !is_last && !needed.contains(position)
        });
    }

    /// Deletes the checkpoints at the positions for which `must_delete` is true.
    fn delete(&mut self, must_delete: impl Fn(&Position) -> bool) {
        for (_, checkpoint) in self.checkpoints.saved.extract_if(.., |position, _| must_delete(position)) {
            self.output.record(Record::Deleting(checkpoint.name.clone()));
            self.output.push_action(Action::DeleteCheckpoint(checkpoint.name));
        }
    }

    /// Deletes the checkpoints that an earlier coordinator process began to save or delete, and did
    /// not finish.
    pub fn delete_unfinished(&mut self) {
        let names = std::mem::take(&mut self.checkpoints.unfinished);
        names.into_iter().map(Action::DeleteCheckpoint).for_each(|action| self.output.push_action(action));
    }
}
