//! Checkpoints: one member writes the state while training goes on, all members report its hash,
//! and the coordinator deletes checkpoints that are no longer needed.
//!
//! ```text
//!   Checkpoint (to all)              CheckpointDone (of all)
//!   ------------------> saving ----------------------------------> saved ------> retired
//!                         |  \
//!      the writer is lost |   \ CheckpointFailed
//!      or the state given |    '----------------> unsaved: no steps are granted, and the save is
//!      up                 v                       retried until it succeeds
//!                        void ----> deleted when all have reported
//! ```
//!
//! A save belongs to the run, not to a generation: the members copied their states at the same
//! step, and the writer may be in a later generation by now. Only one save is in progress at a
//! time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Outcome, ProtocolViolation, Run, Time, one_line,
    plan::{Boundary, Place},
    record::{Checkpoint, EventKind, Record, Source},
};

/// Maximal length of a hash from a worker, in bytes. SHA-256 as hex has 64.
const MAX_HASH_LENGTH: usize = 128;
/// Interval between attempts to save after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The save in progress.
#[derive(Debug)]
pub(super) struct Saving {
    /// The number of the save in directives.
    number: u64,
    /// The state that is saved.
    pub place: Place,
    pub name: String,
    generation: u64,
    /// Whether the state still belongs to the run's history.
    pub wanted: bool,
    /// The id of the member that writes the files.
    pub writer: u32,
    /// The ids of the members that have not reported yet.
    asked: BTreeSet<u32>,
    /// The hash of each member's parameters, by worker id.
    hashes: BTreeMap<u32, String>,
}

/// The last attempt to save failed. Training is held until an attempt succeeds.
#[derive(Debug)]
pub(super) struct FailedSave {
    /// Why it failed, as a message to people.
    pub reason: String,
    /// The time of the next attempt.
    again: Time,
}

impl Saving {
    /// Whether this member has not reported yet.
    pub fn awaits(&self, rank: u32) -> bool {
        self.asked.contains(&rank)
    }
}

impl Run {
    /// Orders the members to save the state at `place`, the last granted one. The member with the
    /// lowest id writes it.
    pub(super) fn place_checkpoint(&mut self, place: Place) {
        let number = self.next_directive();
        let name = self.free_name(place);
        let Some(generation) = &self.generation else { return };
        let Some(writer) = generation.members.first().copied() else { return };
        self.saving = Some(Saving {
            number,
            place,
            name: name.clone(),
            generation: generation.number,
            wanted: true,
            writer,
            asked: generation.members.iter().copied().collect(),
            hashes: BTreeMap::new(),
        });
        self.done.insert((place, Boundary::Checkpoint));
        self.tell(|_, _| {
            Directive::Checkpoint(v1::Checkpoint { checkpoint: number, name: name.clone(), journal: None })
        });
    }

    /// The base name of files that belong to a state, such as the captions of its evaluation.
    pub(super) fn name_of(&self, place: Place) -> String {
        place.checkpoint_name(&self.plan.stage(place).name, None)
    }

    /// A checkpoint name that no other writer can be using, including one that lost its connection
    /// while it wrote. Files that earlier coordinators ordered may still be incomplete.
    fn free_name(&mut self, place: Place) -> String {
        let first = self.attempted.insert(place) && self.first_life;
        let attempt = (!first).then_some(self.last_generation);
        place.checkpoint_name(&self.plan.stage(place).name, attempt)
    }

    /// Whether the state at `granted` is saved. If it is not, orders a save unless one is in
    /// progress.
    pub(super) fn secured(&mut self, granted: Place) -> bool {
        if self.saving.is_some() {
            return false;
        }
        if self.is_saved(granted) {
            return true;
        }
        self.place_checkpoint(granted);
        false
    }

    /// Retries a failed save if that is due. Returns true if there is no need to any more.
    pub(super) fn save_again(&mut self, now: Time, granted: Place) -> bool {
        let due = self.unsaved.as_ref().is_some_and(|unsaved| now >= unsaved.again);
        if !due || self.saving.is_some() {
            return false;
        }
        // The run may have gone back to a state that was saved before.
        if self.checkpoints.contains_key(&granted) {
            self.can_save(granted);
            return true;
        }
        self.place_checkpoint(granted);
        false
    }

    fn can_save(&mut self, at: Place) {
        if let Some(unsaved) = self.unsaved.take() {
            self.event(EventKind::SavedAgain, json!({ "at": at.to_string(), "reason": unsaved.reason }));
        }
    }

    pub(super) fn checkpoint_done(
        &mut self,
        now: Time,
        rank: u32,
        report: v1::CheckpointDone,
    ) -> Result<(), ProtocolViolation> {
        let hash = report.parameters_sha256;
        if hash.is_empty() || hash.len() > MAX_HASH_LENGTH {
            return Err("a checkpoint without a hash of the parameters".into());
        }
        let Some(saving) = self.saving_of(rank, report.generation, report.checkpoint)? else { return Ok(()) };
        saving.asked.remove(&rank);
        saving.hashes.insert(rank, hash);
        self.complete_saving(now);
        Ok(())
    }

    pub(super) fn checkpoint_failed(
        &mut self,
        now: Time,
        rank: u32,
        report: &v1::CheckpointFailed,
    ) -> Result<(), ProtocolViolation> {
        let Some(saving) = self.saving_of(rank, report.generation, report.checkpoint)? else { return Ok(()) };
        if saving.writer != rank {
            return Err("it failed to write a checkpoint that another writes".into());
        }
        let reason = format!("cannot save {}: {}", saving.name, one_line(&report.reason));
        // A failed save leaves no files to delete.
        let Some(Saving { place, wanted: true, .. }) = self.saving.take() else { return Ok(()) };
        self.done.remove(&(place, Boundary::Checkpoint));
        if self.unsaved.is_none() {
            self.event(EventKind::SaveFailed, json!({ "rank": rank, "reason": reason }));
        }
        self.unsaved = Some(FailedSave { reason, again: now.saturating_add(RETRY) });
        Ok(())
    }

    /// The save in progress, if the member's report is about it. Reports about cancelled saves are
    /// ignored; one about a number that was never sent breaks the protocol.
    fn saving_of(&mut self, rank: u32, generation: u64, number: u64) -> Result<Option<&mut Saving>, ProtocolViolation> {
        if number > self.last_directive {
            return Err(format!("checkpoint {number} was not asked for"));
        }
        let under_way = |saving: &&mut Saving| {
            (saving.generation, saving.number) == (generation, number) && saving.asked.contains(&rank)
        };
        Ok(self.saving.as_mut().filter(under_way))
    }

    /// The member will not report on the save in progress, unless `still` names it.
    pub(super) fn stops_saving(&mut self, now: Time, rank: u32, still: Option<u64>) {
        let Some(saving) = self.saving.as_mut().filter(|saving| still != Some(saving.number)) else { return };
        if !saving.asked.remove(&rank) {
            return;
        }
        if saving.writer == rank {
            self.void_saving();
        }
        self.complete_saving(now);
    }

    /// Cancels the save in progress if its state is beyond `end`, and so given up.
    pub(super) fn saves_up_to(&mut self, end: Place) {
        if self.saving.as_ref().is_some_and(|saving| saving.place > end) {
            self.void_saving();
        }
    }

    /// Cancels the save in progress: its checkpoint will be deleted. Members finish it first; no
    /// other save begins before.
    fn void_saving(&mut self) {
        if let Some(saving) = self.saving.as_mut().filter(|saving| saving.wanted) {
            saving.wanted = false;
            self.done.remove(&(saving.place, Boundary::Checkpoint));
        }
    }

    fn complete_saving(&mut self, now: Time) {
        let Some(saving) = self.saving.take_if(|saving| saving.asked.is_empty()) else { return };
        let Saving { place, name, generation, hashes, wanted, .. } = saving;
        if !wanted {
            self.actions.push(Action::DeleteCheckpoint(name));
            return;
        }
        let hash = hashes.values().next().cloned().unwrap_or_default();
        if hashes.values().any(|other| *other != hash) {
            let list: Vec<String> = hashes.iter().map(|(rank, hash)| format!("rank {rank} {}", one(hash))).collect();
            let reason = format!("the ranks' parameters differ at {place}: {}", list.join(", "));
            self.event(EventKind::Diverged, json!({ "stage": place.stage, "step": place.step, "hashes": hashes }));
            self.conclude(now, Outcome::Failed(reason));
            return;
        }
        self.progress += 1;
        let saved = Checkpoint { place, generation, run_id: self.id.clone(), name, parameters_sha256: hash };
        self.checkpoints.insert(place, saved.clone());
        self.record(Record::Saved(saved));
        self.can_save(place);
        self.retire_checkpoints();
    }

    /// A member reports that the checkpoint from which the generation starts is damaged: the next
    /// generation uses an earlier one.
    pub(super) fn damaged(&mut self, rank: u32, name: &str, reason: &str) -> Result<(), ProtocolViolation> {
        let place = self.checkpoints.iter().find(|(_, checkpoint)| checkpoint.name == name).map(|(place, _)| *place);
        let (Some(place), Some(generation)) = (place, &self.generation) else {
            return Err("a damaged checkpoint that the run does not have".into());
        };
        let reads = generation.members.first() == Some(&rank);
        if !reads || generation.source != Source::Checkpoint(name.to_owned()) {
            return Err("a damaged checkpoint that it was not to read".into());
        }
        self.checkpoints.remove(&place);
        self.done.remove(&(place, Boundary::Checkpoint));
        self.progress += 1;
        self.event(EventKind::Damaged, json!({ "rank": rank, "checkpoint": name, "reason": reason }));
        self.record(Record::Damaged(name.to_owned()));
        Ok(())
    }

    /// Deletes checkpoints except: the newest `checkpoints.keep`, the last of each stage, the best
    /// of the current stage, and those that a guard rule may roll back to. (An earlier stage has
    /// ended with its best; its last is in `passed_over`.)
    pub(super) fn retire_checkpoints(&mut self) {
        let keep = self.file.checkpoints.keep as usize;
        let newest: BTreeSet<Place> = self.checkpoints.keys().rev().take(keep).copied().collect();
        let last: BTreeMap<u32, Place> = self.checkpoints.keys().map(|place| (place.stage, *place)).collect();
        let mut needed = self.known().fallbacks();
        needed.extend(self.known().best().map(|best| best.place));
        let kept =
            |place: &Place| newest.contains(place) || last.get(&place.stage) == Some(place) || needed.contains(place);
        self.delete_checkpoints(|place| !kept(place));
    }

    /// Deletes the files of saves that an earlier coordinator began and did not finish.
    pub(super) fn delete_unfinished(&mut self) {
        self.actions.extend(std::mem::take(&mut self.unfinished).into_iter().map(Action::DeleteCheckpoint));
    }

    pub(super) fn delete_checkpoints(&mut self, which: impl Fn(&Place) -> bool) {
        let gone: Vec<Place> = self.checkpoints.keys().filter(|place| which(place)).copied().collect();
        for checkpoint in gone.iter().filter_map(|place| self.checkpoints.remove(place)).collect::<Vec<_>>() {
            self.record(Record::Deleted(checkpoint.name.clone()));
            self.actions.push(Action::DeleteCheckpoint(checkpoint.name));
        }
    }
}

/// A hash as text that is safe in a log.
fn one(hash: &str) -> String {
    hash.escape_debug().to_string()
}
