//! A migrated journal restores the same run as one that was written by the present version.

use std::path::Path;

use rusqlite::Connection;

use super::{
    Error, FILE_NAME, Journal,
    chain::{ChainEntry, ChainWriter, RecordKind},
    read_only::ReadOnlyJournal,
    schema::MIGRATED_VERSION,
};
use crate::{audit::audit, simulation::seeds::recorded_journal};

/// The kinds of records that journals of version 6 have.
const KINDS_OF_VERSION_6: [RecordKind; 9] = [
    RecordKind::RunFile,
    RecordKind::Formed,
    RecordKind::Ready,
    RecordKind::Ended,
    RecordKind::Step,
    RecordKind::Saved,
    RecordKind::Deleted,
    RecordKind::Evaluated,
    RecordKind::Event,
];
/// Removes what version 6 does not have, and all entries of the hash chain.
const DOWNGRADE: &str = "
    DROP VIEW cuts;
    DROP TABLE attachments; DROP TABLE data_changes; DROP TABLE stage_ends; DROP TABLE pauses; DROP TABLE history_moves;
    DROP TABLE run_ends; DROP TABLE guard_firings; DROP TABLE settings_changes; DROP TABLE recoveries;
    CREATE VIEW IF NOT EXISTS cuts AS
        SELECT number - 1 AS generation, stage, step FROM generations
        UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
        FROM events WHERE kind = 'stage_ended';
    DELETE FROM chain;
";

/// Copies a journal to a folder as version 6 would have written it: records that are typed now were
/// events only.
fn copy_as_version_6(journal: &ReadOnlyJournal, folder: &Path) {
    let path = folder.join(FILE_NAME);
    journal.connection().execute("VACUUM INTO ?", [path.to_str().unwrap()]).unwrap();
    let connection = Connection::open(path).unwrap();
    let entries: Vec<ChainEntry> = connection
        .prepare("SELECT * FROM chain ORDER BY sequence")
        .unwrap()
        .query_map([], ChainEntry::read)
        .unwrap()
        .map(|entry| entry.unwrap().expect("a known kind"))
        .collect();
    connection.execute_batch(DOWNGRADE).unwrap();
    connection.pragma_update(None, "user_version", MIGRATED_VERSION).unwrap();
    let mut chain = ChainWriter::open(&connection).unwrap();
    for entry in entries.into_iter().filter(|entry| KINDS_OF_VERSION_6.contains(&entry.kind)) {
        chain.append(&connection, entry).unwrap();
    }
}

/// Opens the journal of a folder, with the run file that it has.
fn open(folder: &Path) -> Result<Journal, Error> {
    let text: String = Connection::open(folder.join(FILE_NAME))?.query_row(
        "SELECT run_file_json FROM run ORDER BY number DESC LIMIT 1",
        [],
        |row| row.get(0),
    )?;
    Journal::open(folder, &serde_json::from_str(&text).unwrap())
}

#[test]
fn a_migrated_journal_restores_the_same_run_and_has_the_same_audit() {
    let mut kinds = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let original = recorded_journal(seed, 1_000 + 200 * seed);
        kinds.extend(original.events().unwrap().into_iter().map(|event| event.kind));
        copy_as_version_6(&original, folders[1].path());
        let path = folders[0].path().join(FILE_NAME);
        original.connection().execute("VACUUM INTO ?", [path.to_str().unwrap()]).unwrap();
        let [written, migrated] = folders.each_ref().map(|folder| open(folder.path()).unwrap());

        let (mut expected, mut restored) = (written.restore().unwrap(), migrated.restore().unwrap());
        // Version 6 did not record the first value beyond the bound.
        let firings = [&mut expected, &mut restored].map(|run| std::mem::take(&mut run.guard_firings));
        let [expected_firings, firings] =
            firings.map(|all| all.into_iter().map(|(at, rule)| (at, rule.metric, rule.action)).collect::<Vec<_>>());
        assert_eq!((restored, firings), (expected, expected_firings), "seed {seed}");
        let audits = [written, migrated].map(|journal| audit(&journal.into_read_only()).unwrap());
        assert_eq!(audits[1].problems, audits[0].problems, "seed {seed}");
        assert_eq!((audits[1].samples, audits[1].finished), (audits[0].samples, audits[0].finished), "seed {seed}");
    }
    for kind in ["joined", "stage_ended", "paused", "resumed", "rollback", "adopted", "finished", "guard"] {
        assert!(kinds.contains(kind), "no run has an event {kind}: {kinds:?}");
    }
}

#[test]
fn a_damaged_journal_is_refused_and_not_migrated() {
    let folder = tempfile::tempdir().unwrap();
    copy_as_version_6(&recorded_journal(1, 3_000), folder.path());
    let connection = Connection::open(folder.path().join(FILE_NAME)).unwrap();
    let error = ReadOnlyJournal::new(connection).unwrap_err().to_string();
    assert!(error.contains("has version 6"), "{error}");
    let connection = Connection::open(folder.path().join(FILE_NAME)).unwrap();
    connection.execute("UPDATE generations SET cause = 'forged' WHERE number = 1", []).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is damaged (record") && error.contains("was changed"), "{error}");
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, MIGRATED_VERSION);
}
