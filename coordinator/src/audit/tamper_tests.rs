//! Tests of the audit with journals of simulated and recovered runs, unchanged and tampered with.

use std::collections::BTreeSet;

use config::{GuardAction, RunFile, testing};
use dico_engine::{
    Outcome, WorkerId,
    checkpoint::Checkpoint,
    data::{DataChange, SplitSize},
    guard::TriggeredRule,
    model_selection::{EndCause, EndDecision},
    record::{Attachment, HistoryMove, Record, StateSource},
    statistics::StepStatistics,
};
use journal::{AcceptedChanges, EvaluatedCaption, Journal, RecoveryCheckpoints};
use proptest::prelude::*;
use proto::v1;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use rusqlite::{Connection, types::Value};

use super::*;
use crate::simulation::seeds::recorded_journal;

const TABLES: [&str; 17] = [
    "run",
    "generations",
    "steps",
    "checkpoints",
    "evaluations",
    "evaluation_items",
    "events",
    "attachments",
    "data_changes",
    "stage_ends",
    "pauses",
    "history_moves",
    "run_ends",
    "guard_firings",
    "settings_changes",
    "recoveries",
    "chain",
];

/// A journal on disk.
struct JournalFile {
    folder: tempfile::TempDir,
}

impl JournalFile {
    fn new(journal: &ReadOnlyJournal) -> Self {
        let folder = tempfile::tempdir().unwrap();
        journal::testing::copy(journal, folder.path());
        Self { folder }
    }

    /// A copy that a test may change.
    fn copy(&self) -> JournalCopy {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.sqlite");
        std::fs::copy(self.folder.path().join("journal.sqlite"), &path).unwrap();
        JournalCopy { connection: Connection::open(path).unwrap(), folder }
    }
}

/// A copy of a journal, with a writable connection.
struct JournalCopy {
    connection: Connection,
    folder: tempfile::TempDir,
}

impl JournalCopy {
    fn open(&self) -> Result<ReadOnlyJournal, Error> {
        ReadOnlyJournal::open(self.folder.path())
    }
}

fn at(stage: u32, step: u64) -> Position {
    Position { stage, step }
}

fn formed(generation: u64, start: Position) -> Record {
    let (members, cause, source) = (vec![], "start".into(), StateSource::Seed);
    Record::Formed { generation, term: 0, members, cause, start, source }
}

fn step(position: Position, generation: u64) -> Record {
    let position = position.in_generation(generation);
    Record::Step(StepStatistics::from_report(WorkerId(0), &v1::StepDone::default(), &position).unwrap())
}

/// The run file of a run of two stages.
fn two_stages() -> RunFile {
    let batch = 4;
    let stages = [("a", 4), ("b", 8)].map(|(name, steps)| testing::stage(name, steps, batch, None, None));
    testing::run_file(stages.into())
}

/// The journal of a finished run of two stages. One generation failed in the second stage.
fn finished_run() -> JournalFile {
    let mut journal = Journal::in_memory(&two_stages()).unwrap();
    let mut records = vec![formed(1, at(0, 0))];
    records.extend((1..=4).map(|n| step(at(0, n), 1)));
    records.extend((1..=5).map(|n| step(at(1, n), 1)));
    let source = StateSource::Member(WorkerId(0));
    let moved = HistoryMove { from: at(1, 5), to: at(1, 3), generation: 2, source };
    records.extend([Record::HistoryMoved(moved), formed(2, at(1, 3))]);
    records.extend((4..=8).map(|n| step(at(1, n), 2)));
    let (position, reason) = (at(1, 8), "the run is finished".to_owned());
    records.push(Record::RunEnded { outcome: Outcome::Finished, position, reason, result: None });
    journal.write(&records).unwrap();
    JournalFile::new(&journal.into_read_only())
}

/// The journal of a run that was recovered from the checkpoint at step 2 of the first stage, and
/// whose settings changed after step 4. It has records of every kind: simulated runs are never
/// recovered, and keep their settings.
fn recovered_run() -> JournalFile {
    let (folder, mut file) = (tempfile::tempdir().unwrap(), two_stages());
    let checkpoint = |position: Position, generation| Checkpoint {
        position,
        generation,
        run_id: "3fa2".into(),
        name: position.checkpoint_name("a", None),
        parameters_sha256: "ab".into(),
    };
    let newest = checkpoint(at(0, 2), 7);
    let recovery = RecoveryCheckpoints {
        checkpoints: vec![newest.clone()],
        newest: newest.clone(),
        lost_head: v1::JournalHead { sequence: 9, hash: "cd".into() },
        run_ids: ["3fa2".to_owned()].into(),
    };
    let mut journal = Journal::recover(folder.path(), &file, &recovery).unwrap();
    let data_set = |train_images| v1::DataSet { train_images, train_captions: 40, ..v1::DataSet::default() };
    let attached = |train_images| {
        let (worker_id, data_set) = (WorkerId(0), data_set(train_images));
        Record::Attached(Attachment { worker_id, host: "here".into(), data_set, held_position: None })
    };
    let (position, reason) = (at(0, 4), "kl is 9".to_owned());
    let evaluated =
        Record::Evaluated { position, generation: 8, evaluation: 1, metrics: [("cider".to_owned(), 1.0)].into() };
    journal.stage_captions(1, vec![EvaluatedCaption { image: "1.jpg".into(), ..EvaluatedCaption::default() }]);
    let records = [
        attached(8),
        formed(8, at(0, 2)),
        Record::Ready { generation: 8, recovery: true },
        step(at(0, 3), 8),
        step(position, 8),
        Record::Saved(checkpoint(position, 8)),
        Record::Deleting(newest.name.clone()),
        evaluated,
        Record::Paused { position, reason: reason.clone() },
        Record::Resumed { position, reason: reason.clone() },
        Record::Ended { generation: 8, reason: "the coordinator stopped".into() },
        Record::RunEnded { outcome: Outcome::Stopped, position, reason: "a signal".into(), result: None },
    ];
    journal.write(&records).unwrap();
    drop(journal);

    file.stages[1].optimizer.learning_rate = 1e-4;
    let mut journal = Journal::open_with_changes(folder.path(), &file, AcceptedChanges::NextStep).unwrap();
    let before = SplitSize::from(&data_set(8));
    let changed = DataChange { generation: 9, from: None, before };
    let mut records = vec![
        attached(9),
        Record::DataChanged { change: changed, after: SplitSize::from(&data_set(9)) },
        formed(9, position),
    ];
    records.extend((1..=5).map(|n| step(at(1, n), 9)));
    let rule = TriggeredRule {
        metric: "kl".into(),
        value: 9.0,
        bound: 1.0,
        action: GuardAction::Rollback,
        is_above: true,
        first_position: at(1, 4),
    };
    let position = at(1, 3);
    let end = EndDecision { position, cause: EndCause::Guard, reason, later_states: vec![] };
    let source = StateSource::Member(WorkerId(0));
    records.extend([
        Record::Guard { position: at(1, 5), generation: 9, rule },
        Record::HistoryMoved(HistoryMove { from: at(1, 5), to: at(1, 4), generation: 10, source }),
        formed(10, at(1, 4)),
        Record::StageEnded { generation: 10, end },
        Record::RunEnded { outcome: Outcome::Finished, position, reason: "done".into(), result: None },
    ]);
    journal.write(&records).unwrap();
    JournalFile::new(&journal.into_read_only())
}

/// All rows of a journal.
fn content(connection: &Connection) -> Vec<Vec<Value>> {
    let rows = TABLES.into_iter().flat_map(|table| rows(connection, table));
    rows.map(|(_, row)| row).collect()
}

/// All rows of a table, each with the SQL condition that selects it.
fn rows(connection: &Connection, table: &str) -> Vec<(String, Vec<Value>)> {
    let names = columns(connection, table);
    let mut statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
    let read = |row: &rusqlite::Row<'_>| (0..names.len()).map(|column| row.get(column)).collect::<Result<Vec<_>, _>>();
    let rows: Vec<Vec<Value>> = statement.query_map([], read).unwrap().map(Result::unwrap).collect();
    let condition = |row: &Vec<Value>| {
        let terms = names.iter().zip(row).map(|(name, value)| format!("{name} IS {}", literal(value)));
        terms.collect::<Vec<_>>().join(" AND ")
    };
    rows.into_iter().map(|row| (condition(&row), row)).collect()
}

fn columns(connection: &Connection, table: &str) -> Vec<String> {
    let statement = connection.prepare(&format!("SELECT * FROM {table}")).unwrap();
    statement.column_names().into_iter().map(str::to_owned).collect()
}

fn literal(value: &Value) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Integer(number) => number.to_string(),
        // This format has as many digits as the exact number needs.
        Value::Real(number) => format!("{number:e}"),
        Value::Text(text) => format!("'{}'", text.replace('\'', "''")),
        Value::Blob(bytes) => format!("x'{}'", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
}

/// A value that differs from this one.
fn different_value(rng: &mut ChaCha8Rng, value: &Value) -> Value {
    match value {
        Value::Null => Value::Integer(1),
        Value::Integer(number) => Value::Integer(number + [-1, 1, 100, 49_999_999].choose(rng).unwrap()),
        Value::Real(number) => Value::Real(number + [-1.0, 1e-3, 1.0].choose(rng).unwrap()),
        Value::Text(text) => Value::Text(format!("{text} ")),
        Value::Blob(bytes) => {
            let mut bytes = bytes.clone();
            let at = rng.random_range(0..bytes.len());
            bytes[at] ^= 1;
            Value::Blob(bytes)
        }
    }
}

/// Makes a random change to a table of a journal. Returns the SQL of the change.
fn tamper(rng: &mut ChaCha8Rng, connection: &Connection, table: &str) -> String {
    let names = columns(connection, table);
    let rows = rows(connection, table);
    let insert = |row: &[Value]| {
        let values: Vec<String> = row.iter().map(literal).collect();
        format!("INSERT OR IGNORE INTO {table} VALUES ({})", values.join(", "))
    };
    let Some((condition, row)) = rows.choose(rng) else { return String::new() };
    let sql = match rng.random_range(0..7) {
        0 => format!("DELETE FROM {table} WHERE {condition}"),
        1 => format!("DELETE FROM {table}"),
        2 => {
            let following =
                rows[rng.random_range(0..rows.len())..].iter().map(|(condition, _)| format!("({condition})"));
            format!("DELETE FROM {table} WHERE {}", following.take(100).collect::<Vec<_>>().join(" OR "))
        }
        3 | 4 => {
            let column = rng.random_range(0..names.len());
            let value = literal(&different_value(rng, &row[column]));
            format!("UPDATE OR IGNORE {table} SET {} = {value} WHERE {condition}", names[column])
        }
        // Two rows swap the values of the second half of their columns.
        5 => {
            let (other_condition, other_row) = rows.choose(rng).unwrap();
            let set = |row: &[Value]| {
                let terms = names
                    .iter()
                    .zip(row)
                    .skip(names.len() / 2)
                    .map(|(name, value)| format!("{name} = {}", literal(value)));
                terms.collect::<Vec<_>>().join(", ")
            };
            format!(
                "UPDATE OR IGNORE {table} SET {} WHERE {condition}; UPDATE OR IGNORE {table} SET {} WHERE {other_condition}",
                set(other_row),
                set(row)
            )
        }
        _ => {
            let column = rng.random_range(0..names.len());
            let mut row = row.clone();
            row[column] = different_value(rng, &row[column]);
            insert(&row)
        }
    };
    // Changes that the tables' constraints forbid have no effect.
    _ = connection.execute_batch(&sql);
    sql
}

/// Makes random changes to copies of a journal, each in a table that `next_table` chooses, until
/// this number of them had an effect. Asserts that the audit detects each of them. Returns the
/// tables that were changed.
fn check_that_changes_are_detected(
    original: &JournalFile,
    rng: &mut ChaCha8Rng,
    count: usize,
    mut next_table: impl FnMut(&mut ChaCha8Rng) -> &'static str,
) -> Vec<&'static str> {
    let untouched = audit(&original.copy().open().unwrap()).unwrap();
    assert!(untouched.clean, "{untouched:?}");
    let mut changed_tables = Vec::new();
    while changed_tables.len() < count {
        let (copy, table) = (original.copy(), next_table(rng));
        let before = content(&copy.connection);
        let edit = tamper(rng, &copy.connection, table);
        if content(&copy.connection) == before {
            continue;
        }
        changed_tables.push(table);
        let audit = copy.open().and_then(|journal| audit(&journal));
        assert!(!matches!(audit, Ok(Audit { clean: true, .. })), "not detected: {edit}");
    }
    changed_tables
}

#[test]
fn every_change_of_a_journal_is_detected() {
    let mut edits = 0;
    for seed in 0..40 {
        // Every other run is interrupted.
        let original =
            JournalFile::new(&recorded_journal(seed, if seed % 2 == 0 { u64::MAX } else { 2_000 + 100 * seed }));
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        edits += check_that_changes_are_detected(&original, &mut rng, 6, |rng| *TABLES.choose(rng).unwrap()).len();
    }
    assert!(edits >= 200);
}

#[test]
fn every_change_of_a_recovered_journal_with_records_of_every_kind_is_detected() {
    let (original, mut rng) = (recovered_run(), ChaCha8Rng::seed_from_u64(1));
    let mut tables = TABLES.into_iter().cycle();
    let changed = check_that_changes_are_detected(&original, &mut rng, 8 * TABLES.len(), |_| tables.next().unwrap());
    assert_eq!(changed.into_iter().collect::<BTreeSet<_>>(), TABLES.into());
}

#[test]
fn a_truncated_journal_is_detected_with_a_later_record() {
    let original = finished_run();
    let head = original.copy().open().unwrap().verify().unwrap().head;
    let copy = original.copy();
    let truncation = "DELETE FROM chain WHERE kind = 'event' AND number = (SELECT max(number) FROM events);
        DELETE FROM events WHERE number = (SELECT max(number) FROM events)";
    copy.connection.execute_batch(truncation).unwrap();
    let journal = copy.open().unwrap();
    let mut audit = audit(&journal).unwrap();
    let chain = journal.verify().unwrap();
    assert_eq!((chain.count, chain.head.sequence), (0, head.sequence - 1));
    audit.check_record(&journal, &chain.head).unwrap();
    assert!(audit.clean);
    audit.check_record(&journal, &head).unwrap();
    assert!(!audit.clean && audit.problems[0].contains("older copy"), "{:?}", audit.problems);
}

#[test]
fn inconsistent_records_are_detected_without_the_chain() {
    // An attacker who changes a record can also recompute the hash chain. So the audit also
    // compares the records with each other. This test leaves out the problems that the chain
    // reveals.
    let original = finished_run();
    let problems_after = |edit: &str| {
        let copy = original.copy();
        copy.connection.execute_batch(edit).unwrap();
        let audit = audit(&copy.open().unwrap()).unwrap();
        assert_eq!(audit.clean, edit.is_empty());
        let is_of_chain = |problem: &String| problem.starts_with("record ") || problem.ends_with("was added");
        audit.problems.into_iter().filter(|problem| !is_of_chain(problem)).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(problems_after(""), "");
    let adopted = "INSERT INTO history_moves (generation, from_stage, from_step, to_stage, to_step, source, at)
        VALUES (3, 1, 8, 1, 50000000, 'seed', 0);
        INSERT INTO generations (number, members_json, cause, formed_at, source, stage, step, term)
        VALUES (3, '[]', '', 0, 'seed', 1, 50000000, 0)";
    for (edit, expected) in [
        (
            "DELETE FROM steps WHERE stage = 1 AND step > 6",
            "the run is finished, but it has only reached stage 1 step 6",
        ),
        (
            "DELETE FROM steps WHERE stage = 1",
            "generation 2 starts at stage 1 step 3, but the run had reached stage 0 step 4",
        ),
        ("DELETE FROM steps WHERE stage = 0", "generation 1 has stage 1 step 1 after stage 0 step 0"),
        ("DELETE FROM steps WHERE (stage, step) = (0, 2)", "generation 1 has stage 0 step 3 after stage 0 step 1"),
        ("DELETE FROM generations", "was never formed"),
        ("DELETE FROM generations WHERE number = 1", "generation 1 is missing"),
        ("DELETE FROM history_moves", "generation 2 starts at stage 1 step 3, but the run had reached"),
        ("UPDATE steps SET generation = 7 WHERE (stage, step) = (1, 8)", "of generation 7, which was never formed"),
        ("UPDATE steps SET step = 49999999 WHERE (stage, step) = (1, 8)", "stage b: steps 8 to 49999998 are missing"),
        ("UPDATE generations SET step = 1 WHERE number = 1", "generation 1 starts at stage 0 step 1"),
        (adopted, "generation 3 starts at stage 1 step 50000000, which the run does not have"),
    ] {
        let problems = problems_after(edit);
        assert!(problems.contains(expected), "{edit}: {problems}");
    }
}

proptest! {
    /// The journal of any run, finished or not, is clean.
    #[test]
    fn untouched_journals_are_clean(seed in any::<u64>(), events in 0..6_000_u64) {
        let audit = audit(&recorded_journal(seed, events)).unwrap();
        prop_assert!(audit.clean, "{:?}", audit);
    }
}
