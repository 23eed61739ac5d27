//! A migrated journal has the typed records that one of the present version has. The coordinator's
//! tests of the audit also migrate journals of simulated runs.

use std::path::Path;

use config::{RunFile, testing};
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
    Error, FILE_NAME, Journal, ReadOnlyJournal,
    testing::{copy, copy_as_version_6, migrated_rows},
    write::{write_event, write_recovery},
};

/// The version of the journals that are migrated here.
const MIGRATED_VERSION: i64 = 6;

fn run_file() -> RunFile {
    testing::run_file(vec![testing::stage("a", 50, 8, Some(5), None)])
}

/// A journal with a generation and the end of a coordinator.
fn short_run() -> Journal {
    let mut journal = Journal::in_memory(&run_file()).unwrap();
    let (position, source, reason) = (Position::default(), StateSource::Seed, "a reason".to_owned());
    let formed =
        Record::Formed { generation: 1, term: 0, members: vec![], cause: "start".into(), start: position, source };
    let stopped = Record::RunEnded { outcome: Outcome::Stopped, position, reason, result: None };
    journal.write(&[formed, stopped]).unwrap();
    journal
}

/// Opens the journal of a folder.
fn open(folder: &Path) -> Result<Journal, Error> {
    Journal::open(folder, &run_file())
}

#[test]
fn each_kind_of_event_with_a_record_is_migrated() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut file = run_file();
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
    let journal = journal.into_read_only();
    let expected = migrated_rows(&journal);
    assert!(expected.iter().all(|rows| !rows.is_empty()), "{expected:?}");
    copy_as_version_6(&journal, folders[1].path());
    let migrated = Journal::open(folders[1].path(), &file).unwrap().into_read_only();
    assert_eq!(migrated_rows(&migrated), expected);
    let copy = Connection::open(folders[1].path().join("journal.sqlite.version-6")).unwrap();
    let version: i64 = copy.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, MIGRATED_VERSION, "the journal before the migration is kept");
    let event = migrated.events().unwrap().pop().unwrap();
    assert_eq!(
        (event.kind.as_str(), &event.detail["from_version"], &event.detail["to_version"]),
        ("migrated", &json!(6), &json!(7))
    );
}

#[test]
fn an_intact_journal_whose_version_was_changed_is_refused() {
    for version in [0, 3, MIGRATED_VERSION] {
        let folder = tempfile::tempdir().unwrap();
        copy(&short_run().into_read_only(), folder.path());
        Connection::open(folder.path().join(FILE_NAME)).unwrap().pragma_update(None, "user_version", version).unwrap();
        let opened = open(folder.path());
        assert!(matches!(opened, Err(Error::Damaged(_) | Error::NotMigrated { .. })), "version {version}: {opened:?}");
    }
}

#[test]
fn a_damaged_journal_is_refused_and_not_migrated() {
    let folder = tempfile::tempdir().unwrap();
    copy_as_version_6(&short_run().into_read_only(), folder.path());
    let error = ReadOnlyJournal::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("has version 6"), "{error}");
    let connection = Connection::open(folder.path().join(FILE_NAME)).unwrap();
    connection.execute("UPDATE generations SET cause = 'forged' WHERE number = 1", []).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("is damaged (record") && error.contains("was changed"), "{error}");
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, MIGRATED_VERSION);
}
