//! Checkpoints: written by the members at the same step, checked against each other, kept as long as they may be needed.

use std::collections::{BTreeMap, BTreeSet};

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Outcome, Run, Time, Violation,
    plan::{Boundary, Place},
    progress::Awaiting,
    record::{Checkpoint, Happening, Record},
};

/// Longest hash that a worker may report, in bytes: SHA-256 as hex has 64.
const LONGEST_HASH: usize = 128;

impl Run {
    pub(super) fn place_checkpoint(&mut self, place: Place) {
        let number = self.next_directive();
        let name = self.name_of(place);
        let directive = v1::Checkpoint { checkpoint: number, name: name.clone() };
        let awaiting = Awaiting::Checkpoint { number, place, name, hashes: BTreeMap::new() };
        self.place(awaiting, &Directive::Checkpoint(directive));
    }

    /// What files of a state are called.
    pub(super) fn name_of(&self, place: Place) -> String {
        place.checkpoint_name(&self.plan.stage(place).name)
    }

    pub(super) fn checkpoint_done(
        &mut self,
        now: Time,
        rank: u32,
        report: v1::CheckpointDone,
    ) -> Result<(), Violation> {
        if !self.is_current(rank, report.generation)? {
            return Ok(());
        }
        let hash = report.parameters_sha256;
        if hash.is_empty() || hash.len() > LONGEST_HASH {
            return Err("a checkpoint without a hash of the parameters".into());
        }
        let Some(generation) = &mut self.generation else { return Ok(()) };
        let world = generation.members.len();
        let Some(Awaiting::Checkpoint { number, place, name, hashes }) = &mut generation.awaiting else {
            return Err("a checkpoint that was not asked for".into());
        };
        if *number != report.checkpoint || generation.progress.get(&rank) != Some(place) {
            return Err(format!("checkpoint {} instead of {number}, or too early", report.checkpoint));
        }
        hashes.insert(rank, hash);
        if hashes.len() < world {
            return Ok(());
        }
        let (place, name, hashes) = (*place, std::mem::take(name), std::mem::take(hashes));
        let generation_number = generation.number;
        generation.awaiting = None;
        let hash = hashes.values().next().cloned().unwrap_or_default();
        if hashes.values().any(|other| *other != hash) {
            let list: Vec<String> = hashes.iter().map(|(rank, hash)| format!("rank {rank} {}", one(hash))).collect();
            let reason = format!("the ranks' parameters differ at {place}: {}", list.join(", "));
            self.event(Happening::Diverged, json!({ "stage": place.stage, "step": place.step, "hashes": hashes }));
            self.conclude(now, Outcome::Failed(reason));
            return Ok(());
        }
        self.done.insert((place, Boundary::Checkpoint));
        self.progress += 1;
        let saved = Checkpoint { place, generation: generation_number, name, parameters_sha256: hash };
        self.checkpoints.insert(place, saved.clone());
        self.unfinished.remove(&place);
        self.record(Record::Saved(saved));
        self.retire_checkpoints();
        self.delete_unfinished();
        Ok(())
    }

    /// Deletes what is neither among the newest checkpoints, nor the last of its stage, nor the best of the present one, nor
    /// what a rule of the guard may fall back to. (An earlier stage has ended with its best.)
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

    /// Deletes what was left unfinished where no checkpoint will be written any more: beyond the end of a stage, and before
    /// the newest checkpoint. Only for when nobody is in an earlier generation, and may still write. (The journal never knew.)
    pub(super) fn delete_unfinished(&mut self) {
        let newest = self.checkpoints.keys().next_back();
        let is_left = |place: &Place| !self.plan.reaches(*place) || newest.is_some_and(|newest| place < newest);
        let left = self.unfinished.extract_if(.., |place, _| is_left(place));
        self.actions.extend(left.map(|(_, name)| Action::DeleteCheckpoint(name)));
    }

    pub(super) fn delete_checkpoints(&mut self, which: impl Fn(&Place) -> bool) {
        let gone: Vec<Place> = self.checkpoints.keys().filter(|place| which(place)).copied().collect();
        for checkpoint in gone.iter().filter_map(|place| self.checkpoints.remove(place)).collect::<Vec<_>>() {
            self.record(Record::Deleted(checkpoint.name.clone()));
            self.actions.push(Action::DeleteCheckpoint(checkpoint.name));
        }
    }
}

/// A hash as text that cannot do harm in a log.
fn one(hash: &str) -> String {
    hash.escape_debug().to_string()
}
