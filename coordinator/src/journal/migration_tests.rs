//! A migrated journal restores the same run as one that was written by the present version.

use std::path::Path;

use config::testing;
use dico_engine::{
    Outcome, WorkerId,
    data::{DataChange, SplitSize},
    model_selection::{EndCause, EndDecision},
    plan::Position,
    record::{Attachment, HistoryMove, Record, StateSource},
};
use proto::v1;
use rusqlite::Connection;
use serde_json::json;

use super::{
    Error, FILE_NAME, Journal,
    chain::{ChainEntry, ChainWriter, RecordKind},
    read_only::ReadOnlyJournal,
    schema::MIGRATED_VERSION,
    write::{write_event, write_recovery},
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

/// The tables that version 6 does not have, except `guard_firings`.
const TYPED_TABLES: [&str; 8] = [
    "attachments",
    "data_changes",
    "stage_ends",
    "pauses",
    "history_moves",
    "run_ends",
    "settings_changes",
    "recoveries",
];

/// All rows of a table, as text.
fn rows(connection: &Connection, table: &str) -> Vec<Vec<String>> {
    let mut statement = connection.prepare(&format!("SELECT * FROM {table} ORDER BY number")).unwrap();
    // Events and records are written at slightly different times.
    let columns = statement.column_names().iter().position(|name| *name == "at").unwrap();
    let read = |row: &rusqlite::Row<'_>| (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect();
    statement.query_map([], read).unwrap().map(Result::unwrap).collect()
}

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

        let (mut expected, restored) = (written.restore().unwrap(), migrated.restore().unwrap());
        expected.rollbacks.clear();
        assert_eq!(restored, expected, "seed {seed}");
        let rows = [&written, &migrated].map(|journal| TYPED_TABLES.map(|table| rows(&journal.connection, table)));
        assert_eq!(rows[1], rows[0], "seed {seed}");
        let audits = [written, migrated].map(|journal| audit(&journal.into_read_only()).unwrap());
        assert_eq!(audits[1].problems, audits[0].problems, "seed {seed}");
        assert_eq!((audits[1].samples, audits[1].finished), (audits[0].samples, audits[0].finished), "seed {seed}");
    }
    for kind in ["joined", "stage_ended", "paused", "resumed", "rollback", "adopted", "finished", "guard"] {
        assert!(kinds.contains(kind), "no run has an event {kind}: {kinds:?}");
    }
}

#[test]
fn each_kind_of_event_with_a_record_is_migrated() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, Some(5), None)]);
    let at = |step| Position { stage: 0, step };
    let mut journal = Journal::open(folders[0].path(), &file).unwrap();
    let ids = json!(["the first run"]);
    let transaction = journal.connection.transaction().unwrap();
    write_recovery(&transaction, &mut journal.chain, at(3), 7, ("0-a-00000003", &ids), 1.0).unwrap();
    let detail = json!({ "stage": 0, "step": 3, "generation": 7, "checkpoint": "0-a-00000003", "run_ids": ids });
    write_event(&transaction, &mut journal.chain, "recovered", &detail).unwrap();
    transaction.commit().unwrap();
    let size = |images| SplitSize { images, captions: 5 * images };
    let change = DataChange { generation: 8, from: None, before: size(9) };
    let data_set = v1::DataSet { train_images: 9, models_fingerprint: "m".into(), ..v1::DataSet::default() };
    let held_position = Some(at(3));
    let attachment = Attachment { worker_id: WorkerId(2), host: "here".into(), data_set, held_position };
    let (position, reason) = (at(4), "a reason".to_owned());
    let end = |outcome, result| Record::RunEnded { outcome, position, reason: reason.clone(), result };
    let cause = EndCause::EarlyStopping;
    let stage_end = EndDecision { position: at(2), cause, reason: reason.clone(), later_states: vec![] };
    let source = StateSource::Checkpoint("0-a-00000003".into());
    let records = [
        Record::Attached(attachment),
        Record::DataChanged { change, after: size(8) },
        Record::HistoryMoved(HistoryMove { from: at(4), to: at(3), generation: 8, source }),
        Record::Paused { position, reason: reason.clone() },
        end(Outcome::Stopped, None),
        Record::Resumed { position, reason: reason.clone() },
        end(Outcome::Failed(reason.clone()), None),
        Record::StageEnded { generation: 8, end: stage_end },
        end(Outcome::Finished, Some("0-a-00000002".into())),
    ];
    journal.write(&records).unwrap();
    drop(journal);
    file.checkpoints.keep += 1;
    let journal = Journal::open(folders[0].path(), &file).unwrap();
    let expected = TYPED_TABLES.map(|table| rows(&journal.connection, table));
    assert!(expected.iter().all(|rows| !rows.is_empty()), "{expected:?}");
    copy_as_version_6(&journal.into_read_only(), folders[1].path());
    let migrated = open(folders[1].path()).unwrap();
    assert_eq!(TYPED_TABLES.map(|table| rows(&migrated.connection, table)), expected);
    let copy = Connection::open(folders[1].path().join("journal.sqlite.version-6")).unwrap();
    let version: i64 = copy.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, MIGRATED_VERSION, "the journal before the migration is kept");
}

#[test]
fn an_intact_journal_whose_version_was_changed_is_refused() {
    for version in [0, MIGRATED_VERSION] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        recorded_journal(1, 3_000).connection().execute("VACUUM INTO ?", [path.to_str().unwrap()]).unwrap();
        Connection::open(path).unwrap().pragma_update(None, "user_version", version).unwrap();
        assert!(matches!(open(folder.path()), Err(Error::Damaged(_))), "version {version}");
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
