//! Journals for tests of this crate and of others: copies, journals of the version before, and an
//! example whose content a test chooses. The functions panic if a folder cannot be written.

use std::path::Path;

use config::RunFile;
use rusqlite::Connection;

use crate::{
    Journal, ReadOnlyJournal,
    chain::{ChainEntry, ChainWriter, RecordKind},
    schema::FILE_NAME,
};

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

/// The records of the example journal: rows of its tables, without the hash chain.
const EXAMPLE_RECORDS: &str = r#"
PRAGMA journal_mode = DELETE;
INSERT INTO generations VALUES
    (1, '[{"rank":0,"host":"a","version":"0.1.0","device":"cpu"}]', 'start', 1, 2, 3, 'a worker joined', 'seed', 0, 0, 7),
    (2, '[{"rank":0,"host":"a","version":"0.1.0","device":"cpu"}]', 'joined', 3, 4, NULL, NULL, 'worker 0', 0, 2, 7);
INSERT INTO steps VALUES
    (0, 1, 1, 0.5, 0.001, 1, 0.5, 0.1, 8, '{"kl":{"count":8,"mean":0.5}}', 2.5, 0, 0.1),
    (0, 2, 1, 0.5, 0.001, 1, 0.5, 0.1, 8, '{}', 2.75, NULL, NULL),
    (0, 3, 2, 0.5, 0.001, 1, 0.5, 0.1, 8, '{}', 4.5, NULL, NULL);
INSERT INTO attachments VALUES (1, 0, 'a', 10, 50, 0, 5, 't', 'v', 'm', NULL, 1);
INSERT INTO data_changes VALUES (1, 2, 10, 9, 50, 45, 5);
INSERT INTO history_moves VALUES (1, 2, 0, 1, 0, 2, 'worker 0', 3);
INSERT INTO pauses VALUES (1, 1, 0, 2, 'kl is 9', 5), (2, 0, 0, 2, 'kl is 9', 5);
INSERT INTO guard_firings VALUES (1, 0, 2, 1, 'kl', 9, 1, 1, 'rollback', 0, 1, 5);
INSERT INTO stage_ends VALUES (1, 0, 2, 1, 'best_state', 'it is the best', 6);
INSERT INTO settings_changes VALUES (1, 0, 2, '[]', 6);
INSERT INTO recoveries VALUES (1, 0, 0, 1, '0-a-00000000', '["x"]', 1);
INSERT INTO chain VALUES (2, 'recovered', NULL, NULL, NULL, 1, zeroblob(32));
INSERT INTO run_ends VALUES (1, 'finished', 0, 3, 'the run is finished', NULL, 7);
INSERT INTO events VALUES
    (1, 1, 'joined', '{"rank":0,"train_images":10,"train_captions":50}'),
    (2, 5, 'data_changed', '{"training":{"before":{"images":10,"captions":50},"after":{"images":9,"captions":45}}}'),
    (3, 6, 'stage_ended', '{"stage":0,"step":2,"generation":1,"cause":"best_state","reason":"it is the best"}');
"#;

/// Copies a journal to a folder.
pub fn copy(journal: &ReadOnlyJournal, folder: &Path) {
    let path = folder.join(FILE_NAME);
    journal.connection.execute("VACUUM INTO ?", [path.to_string_lossy()]).expect("the folder can be written");
}

/// Copies a journal to a folder as version 6 would have written it: records that are typed now were
/// events only.
pub fn copy_as_version_6(journal: &ReadOnlyJournal, folder: &Path) {
    copy(journal, folder);
    let connection = Connection::open(folder.join(FILE_NAME)).expect("the copy is a database");
    let mut statement = connection.prepare("SELECT * FROM chain ORDER BY sequence").expect("the copy has a chain");
    let entries = statement.query_map([], ChainEntry::read).expect("the chain can be read");
    let entries: Vec<ChainEntry> = entries.map(|entry| entry.expect("an entry").expect("a known kind")).collect();
    drop(statement);
    connection.execute_batch(DOWNGRADE).expect("the copy has these tables");
    connection.pragma_update(None, "user_version", 6).expect("the copy can be written");
    let mut chain = ChainWriter::open(&connection).expect("the chain is empty");
    for entry in entries.into_iter().filter(|entry| KINDS_OF_VERSION_6.contains(&entry.kind)) {
        chain.append(&connection, entry).expect("the copy has the record");
    }
}

/// The rows of the tables that version 6 does not have, as text and without their times. Leaves out
/// `guard_firings`, which a migration cannot fill.
#[must_use]
pub fn migrated_rows(journal: &ReadOnlyJournal) -> Vec<Vec<Vec<String>>> {
    TYPED_TABLES.iter().map(|table| rows(&journal.connection, table)).collect()
}

/// All rows of a table, as text.
fn rows(connection: &Connection, table: &str) -> Vec<Vec<String>> {
    let query = format!("SELECT * FROM {table} ORDER BY number");
    let mut statement = connection.prepare(&query).expect("the journal has this table");
    // Events and records are written at slightly different times.
    let columns = statement.column_names().iter().position(|name| *name == "at").expect("the rows have times");
    let read = |row: &rusqlite::Row<'_>| (0..columns).map(|column| Ok(format!("{:?}", row.get_ref(column)?))).collect();
    let rows = statement.query_map([], read).expect("the table can be read");
    rows.map(|row| row.expect("a row")).collect()
}

/// Writes an example to a folder: a journal of one stage, with two generations, some steps and
/// events, and at least one row in each table of typed records.
pub fn write_example(folder: &Path, file: &RunFile) {
    drop(Journal::open(folder, file).expect("the folder can be written"));
    let connection = Connection::open(folder.join(FILE_NAME)).expect("the journal is a database");
    connection.execute_batch(EXAMPLE_RECORDS).expect("the records fit the tables");
}

/// Replaces the JSON in the columns of events, steps and generations by this text.
pub fn replace_json(folder: &Path, text: &str) {
    let connection = Connection::open(folder.join(FILE_NAME)).expect("the journal is a database");
    for (table, column) in [("events", "detail_json"), ("steps", "summaries_json"), ("generations", "members_json")] {
        let update = format!("UPDATE {table} SET {column} = ?1");
        connection.execute(&update, [text]).expect("the journal has these columns");
    }
}
