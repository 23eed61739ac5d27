//! The audit of a simulated run's journal is the same after a migration from version 6.

use std::collections::BTreeSet;

use journal::{
    Journal,
    testing::{copy, copy_as_version_6, migrated_rows},
};

use super::audit;
use crate::simulation::seeds::recorded_journal;

#[test]
fn a_migrated_journal_restores_the_same_run_and_has_the_same_audit() {
    let mut kinds = BTreeSet::new();
    for seed in 0..40 {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let original = recorded_journal(seed, 1_000 + 200 * seed);
        kinds.extend(original.events().unwrap().into_iter().map(|event| event.kind));
        copy(&original, folders[0].path());
        copy_as_version_6(&original, folders[1].path());
        let file = original.run_file().unwrap();
        let [written, migrated] = folders.each_ref().map(|folder| Journal::open(folder.path(), &file).unwrap());

        let (mut expected, restored) = (written.restore().unwrap(), migrated.restore().unwrap());
        // Version 6 has no table of guard rules that have fired.
        expected.rollbacks.clear();
        assert_eq!(restored, expected, "seed {seed}");
        let [written, migrated] = [written, migrated].map(Journal::into_read_only);
        assert_eq!(migrated_rows(&migrated), migrated_rows(&written), "seed {seed}");
        assert_eq!(migrated.outcome().unwrap(), written.outcome().unwrap(), "seed {seed}");
        let [written, migrated] = [written, migrated].map(|journal| audit(&journal).unwrap());
        assert_eq!(migrated.problems, written.problems, "seed {seed}");
        assert_eq!((migrated.samples, migrated.finished), (written.samples, written.finished), "seed {seed}");
    }
    for kind in ["joined", "stage_ended", "paused", "resumed", "rollback", "adopted", "finished", "guard"] {
        assert!(kinds.contains(kind), "no run has an event {kind}: {kinds:?}");
    }
}
