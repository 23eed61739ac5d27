//! The checkpoints on the disk that all machines share.

use std::collections::{BTreeMap, BTreeSet};

use super::{History, WorkerId, world::World};
use crate::run::record::Record;

#[derive(Debug, Default)]
pub struct Disk {
    pub checkpoints: BTreeMap<String, History>,
    /// What was written for a coordinator that died before it knew, or by workers that were given up.
    pub orphans: BTreeSet<String>,
    /// Whether workers that were given up may replace what is there; see the story about it.
    pub overwritten: bool,
}

impl World {
    pub fn write_checkpoint(&mut self, by: WorkerId, name: String, history: History) {
        if !self.is_member(by) {
            if self.disk.checkpoints.contains_key(&name) && !self.disk.overwritten {
                return;
            }
            self.disk.orphans.insert(name.clone());
        }
        self.disk.checkpoints.insert(name, history);
    }

    pub fn delete_checkpoint(&mut self, name: &str) {
        let existed = self.disk.checkpoints.remove(name).is_some();
        // One that is not on record was never complete: maybe nobody had begun.
        let on_record = self.coordinator.records.last() == Some(&Record::Deleted(name.to_owned()));
        assert!(existed || !on_record, "what is on record exists until it is deleted: {name}");
    }

    /// Whether the coordinator counts on this worker.
    pub fn is_member(&self, id: WorkerId) -> bool {
        let session = self.workers.get(&id).and_then(super::worker::Worker::session);
        let run = self.coordinator.run.as_ref();
        session.zip(run).is_some_and(|(session, run)| run.members.rank_of(session).is_some())
    }

    /// The checkpoints that the coordinator knows of are all there.
    pub fn check_known_checkpoints(&self) -> BTreeSet<String> {
        let known: BTreeSet<String> = self.run().checkpoints.values().map(|saved| saved.name.clone()).collect();
        let there = |name: &String| self.disk.checkpoints.contains_key(name);
        assert!(known.iter().all(there), "{known:?} are not all on disk");
        known
    }

    /// What is on disk is what the coordinator knows of, but for orphans.
    pub fn check_disk(&self) {
        let known = self.check_known_checkpoints();
        let left = |name: &&String| !known.contains(*name) && !self.disk.orphans.contains(*name);
        let left: Vec<&String> = self.disk.checkpoints.keys().filter(left).collect();
        assert!(left.is_empty(), "{left:?} are left over");
    }

    /// A coordinator that has just started does not know of what was being written for the one before.
    pub fn orphan_checkpoints(&mut self) {
        let known = self.check_known_checkpoints();
        let unknown = self.disk.checkpoints.keys().filter(|name| !known.contains(*name)).cloned();
        self.disk.orphans.extend(unknown);
    }
}
