//! The simulated checkpoint storage, shared by all machines.

use std::collections::{BTreeMap, BTreeSet};

use checkpoint_store::Listing;
use rand::Rng;

use super::{History, world::SimWorld};
use crate::run::{checkpoint::Saving, record::Record};

#[derive(Debug, Default)]
pub struct Disk {
    /// Complete checkpoints.
    pub checkpoints: BTreeMap<String, History>,
    /// Checkpoints that are being written, or whose writers have died.
    unsealed: BTreeSet<String>,
    /// Whether all writes fail.
    pub full: bool,
    /// Checkpoints that can no longer be read.
    pub damaged: BTreeSet<String>,
    /// Checkpoints that were written since the coordinator's start without its order, by evicted
    /// workers.
    late: BTreeSet<String>,
}

impl SimWorld {
    /// A worker begins to write a checkpoint, which removes an earlier one of that name.
    pub fn begin_checkpoint(&mut self, name: String) {
        self.note_late(&name);
        self.disk.checkpoints.remove(&name);
        self.disk.unsealed.insert(name);
    }

    /// A worker has written a checkpoint. Returns whether that succeeded.
    pub fn end_checkpoint(&mut self, name: String, history: History) -> bool {
        let whole = self.disk.unsealed.remove(&name);
        // If the coordinator has deleted it meanwhile, the writer may notice that or not.
        if self.disk.full || (!whole && self.rng.random()) {
            return false;
        }
        self.note_late(&name);
        if !whole {
            self.disk.damaged.insert(name.clone());
        }
        self.disk.checkpoints.insert(name, history);
        true
    }

    fn note_late(&mut self, name: &str) {
        let awaited = |saving: &Saving| saving.name == name;
        if self.coordinator.run.as_ref().is_some_and(|run| !run.saving.as_ref().is_some_and(awaited)) {
            self.disk.late.insert(name.to_owned());
        }
    }

    pub fn delete_checkpoint(&mut self, name: &str) {
        let existed = self.disk.checkpoints.remove(name).is_some();
        self.disk.unsealed.remove(name);
        self.disk.damaged.remove(name);
        // A checkpoint that is not recorded was never complete, or never begun.
        let on_record = self.coordinator.records.last() == Some(&Record::Deleted(name.to_owned()));
        assert!(existed || !on_record, "what is on record exists until it is deleted: {name}");
    }

    /// The listing for a coordinator that starts; it deletes checkpoints that it does not know.
    pub fn list_checkpoints(&mut self) -> Listing {
        self.disk.late.clear();
        let sealed = self.disk.checkpoints.keys().cloned().collect();
        Listing { sealed, unsealed: self.disk.unsealed.clone(), foreign: BTreeSet::new() }
    }

    /// Asserts that all checkpoints that the coordinator knows exist.
    pub fn check_known_checkpoints(&self) {
        for saved in self.run().checkpoints.values().chain(&self.run().passed_over) {
            assert!(self.disk.checkpoints.contains_key(&saved.name), "{saved:?} is not on disk");
        }
    }

    /// Asserts that only checkpoints exist that the coordinator knows, apart from those that it
    /// cannot know or use.
    pub fn check_disk(&self) {
        self.check_known_checkpoints();
        let known = self.run().checkpoints.values().chain(&self.run().passed_over);
        let known: BTreeSet<&String> = known.map(|saved| &saved.name).collect();
        let Disk { checkpoints, unsealed, damaged, late, .. } = &self.disk;
        let excused = |name: &&String| known.contains(name) || damaged.contains(*name) || late.contains(*name);
        let left: Vec<&String> = checkpoints.keys().chain(unsealed).filter(|name| !excused(name)).collect();
        assert!(left.is_empty(), "{left:?} are left over");
    }
}
