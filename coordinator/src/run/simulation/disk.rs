//! The checkpoints on the disk that all machines share.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use storage::Listing;

use super::{History, world::World};
use crate::run::{checkpoint::Saving, record::Record};

#[derive(Debug, Default)]
pub struct Disk {
    /// What is complete.
    pub checkpoints: BTreeMap<String, History>,
    /// What is being written, or was by who is gone.
    unsealed: BTreeSet<String>,
    /// Nothing can be written.
    pub full: bool,
    /// What cannot be read any more.
    pub damaged: BTreeSet<String>,
    /// What was written since the coordinator has started that it did not wait for: by workers that were given up.
    late: BTreeSet<String>,
}

impl World {
    /// A worker begins to write; what has the same name is gone.
    pub fn begin_checkpoint(&mut self, name: String) {
        self.note_late(&name);
        self.disk.checkpoints.remove(&name);
        self.disk.unsealed.insert(name);
    }

    /// A worker has written a checkpoint; whether it could.
    pub fn end_checkpoint(&mut self, name: String, history: History) -> bool {
        let whole = self.disk.unsealed.remove(&name);
        // Where the coordinator has deleted it meanwhile, that may be noticed or not.
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
        // One that is not on record was never complete: maybe nobody had begun.
        let on_record = self.coordinator.records.last() == Some(&Record::Deleted(name.to_owned()));
        assert!(existed || !on_record, "what is on record exists until it is deleted: {name}");
    }

    /// What a coordinator that starts finds; it deletes what it does not know.
    pub fn list_checkpoints(&mut self) -> Listing {
        self.disk.late.clear();
        let sealed = self.disk.checkpoints.keys().cloned().collect();
        Listing { sealed, unsealed: self.disk.unsealed.clone(), foreign: BTreeSet::new() }
    }

    /// The checkpoints that the coordinator knows of are all there.
    pub fn check_known_checkpoints(&self) {
        for saved in self.run().checkpoints.values().chain(&self.run().passed_over) {
            assert!(self.disk.checkpoints.contains_key(&saved.name), "{saved:?} is not on disk");
        }
    }

    /// What is on disk is what the coordinator knows of, but for what it could not know, or cannot use.
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
