//! The simulated checkpoint storage, shared by all machines.

use std::collections::{BTreeMap, BTreeSet};

use checkpoint_store::Listing;
use dico_engine::{record::Record, state::checkpoints::SaveInProgress};
use rand::Rng;

use super::{UpdateHistory, cluster::Cluster};

/// The storage of checkpoints. A seal marks a checkpoint as complete.
#[derive(Debug, Default)]
pub struct Disk {
    /// Sealed checkpoints by name.
    pub checkpoints: BTreeMap<String, UpdateHistory>,
    /// Checkpoints without a seal: a worker writes them, or has died while it wrote them.
    unsealed: BTreeSet<String>,
    /// Whether all writes fail.
    pub is_full: bool,
    /// Checkpoints that can no longer be read.
    pub damaged: BTreeSet<String>,
    /// Checkpoints that were written since the running coordinator process started, but that it did
    /// not order. The writers are workers that it has evicted, or that an earlier coordinator
    /// process ordered to save.
    unexpected: BTreeSet<String>,
}

impl Cluster {
    /// Starts to write a checkpoint, and removes an earlier one of that name.
    pub fn start_checkpoint(&mut self, name: String) {
        self.record_unexpected(&name);
        self.disk.checkpoints.remove(&name);
        self.disk.unsealed.insert(name);
    }

    /// Seals a checkpoint. Returns whether writing has succeeded.
    pub fn complete_checkpoint(&mut self, name: String, history: UpdateHistory) -> bool {
        let is_intact = self.disk.unsealed.remove(&name);
        // If the coordinator has deleted files of the checkpoint in the meantime, the writer may
        // fail because of that, or may not notice it.
        if self.disk.is_full || (!is_intact && self.rng.random()) {
            return false;
        }
        self.record_unexpected(&name);
        if !is_intact {
            self.disk.damaged.insert(name.clone());
        }
        self.disk.checkpoints.insert(name, history);
        true
    }

    /// Records a checkpoint as unexpected if the running coordinator is not saving it.
    fn record_unexpected(&mut self, name: &str) {
        let is_expected = |saving: &SaveInProgress| saving.name == name;
        if self
            .coordinator
            .engine
            .as_ref()
            .is_some_and(|engine| !engine.state().checkpoints.in_progress.as_ref().is_some_and(is_expected))
        {
            self.disk.unexpected.insert(name.to_owned());
        }
    }

    /// Deletes a checkpoint, as the coordinator requests.
    pub fn delete_checkpoint(&mut self, name: &str) {
        let existed = self.disk.checkpoints.remove(name).is_some();
        self.disk.unsealed.remove(name);
        self.disk.damaged.remove(name);
        // If the deletion is not recorded, the checkpoint may be incomplete, or may not exist: it
        // belongs to a cancelled or unfinished save.
        let deletion_is_recorded = self.coordinator.records.last() == Some(&Record::Deleting(name.to_owned()));
        assert!(existed || !deletion_is_recorded, "the recorded checkpoint {name} was not on disk when it was deleted");
    }

    /// The checkpoints on disk, for a coordinator that starts. It deletes those that it does not
    /// know.
    pub fn list_checkpoints(&mut self) -> Listing {
        self.disk.unexpected.clear();
        let sealed = self.disk.checkpoints.keys().cloned().collect();
        Listing { sealed, unsealed: self.disk.unsealed.clone(), not_checkpoints: BTreeSet::new() }
    }

    /// Asserts that all checkpoints that the coordinator knows exist.
    pub fn check_known_checkpoints(&self) {
        for saved in self.state().checkpoints.saved.values().chain(&self.state().checkpoints.superseded) {
            assert!(self.disk.checkpoints.contains_key(&saved.name), "{saved:?} is not on disk");
        }
    }

    /// Asserts that the coordinator knows all checkpoints on disk, except for damaged and
    /// unexpected ones.
    pub fn check_disk(&self) {
        self.check_known_checkpoints();
        let known_checkpoints = self.state().checkpoints.saved.values().chain(&self.state().checkpoints.superseded);
        let known_names: BTreeSet<&String> = known_checkpoints.map(|saved| &saved.name).collect();
        let Disk { checkpoints, unsealed, damaged, unexpected, .. } = &self.disk;
        let is_allowed =
            |name: &&String| known_names.contains(name) || damaged.contains(*name) || unexpected.contains(*name);
        let unknown_names: Vec<&String> = checkpoints.keys().chain(unsealed).filter(|name| !is_allowed(name)).collect();
        assert!(unknown_names.is_empty(), "the coordinator does not know {unknown_names:?} on disk");
    }
}
