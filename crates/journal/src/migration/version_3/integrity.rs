//! The check of a journal of version 3. It has no hash chain: the check finds damaged pages and
//! values, and records that contradict each other.

use rusqlite::{Connection, OptionalExtension, types::ValueRef};
use serde::de::IgnoredAny;

use super::super::super::{
    Error,
    integrity::{read_schema, schema_of},
};

/// The tables of version 3.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
CREATE TABLE IF NOT EXISTS generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind);
CREATE VIEW IF NOT EXISTS cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
";

const TABLES: [&str; 7] = ["run", "generations", "steps", "checkpoints", "evaluations", "evaluation_items", "events"];

/// Queries that return a message for each contradiction between records.
const CONTRADICTIONS: [&str; 6] = [
    "SELECT 'it has ' || runs || ' run files' FROM (SELECT count(*) AS runs FROM run) WHERE runs <> 1",
    "SELECT 'generation ' || expected || ' is missing'
    FROM (SELECT number, row_number() OVER (ORDER BY number) AS expected FROM generations)
    WHERE number <> expected ORDER BY expected",
    "SELECT record || ' at stage ' || stage || ' step ' || step || ' is of generation ' || generation
        || ', which was never formed'
    FROM (SELECT 'a step' AS record, stage, step, generation FROM steps
        UNION ALL SELECT 'a checkpoint', stage, step, generation FROM checkpoints
        UNION ALL SELECT 'an evaluation', stage, step, generation FROM evaluations)
    WHERE generation NOT IN (SELECT number FROM generations)",
    "SELECT 'the evaluation at stage ' || stage || ' step ' || step || ' has captions, but no scores'
    FROM (SELECT stage, step, generation FROM evaluation_items
        EXCEPT SELECT stage, step, generation FROM evaluations)",
    "SELECT 'generation ' || generation || ' has stage ' || stage || ' step ' || step || ' after stage '
        || previous_stage || ' step ' || previous_step
    FROM (SELECT own.generation, own.stage, own.step,
            lag(own.stage, 1, started.stage) OVER in_order AS previous_stage,
            lag(own.step, 1, started.step) OVER in_order AS previous_step
        FROM steps AS own JOIN generations AS started ON started.number = own.generation
        WINDOW in_order AS (PARTITION BY own.generation ORDER BY own.stage, own.step))
    WHERE NOT (stage = previous_stage AND step = previous_step + 1)
        AND NOT (stage = previous_stage + 1 AND step = 1)",
    // A generation starts where the one before it has ended, unless an event has moved the run.
    "WITH reached AS (SELECT number, coalesce(last.stage, own.stage) AS stage, coalesce(last.step, own.step) AS step
        FROM generations AS own LEFT JOIN (SELECT generation, stage, step, max((stage << 40) + step)
            FROM steps GROUP BY generation) AS last ON last.generation = own.number
        UNION ALL SELECT 0, 0, 0)
    SELECT 'generation ' || own.number || ' starts at stage ' || own.stage || ' step ' || own.step
        || ', but the run had reached stage ' || reached.stage || ' step ' || reached.step
    FROM generations AS own JOIN reached ON reached.number = own.number - 1
    WHERE (own.stage, own.step) <> (reached.stage, reached.step)
        AND NOT (own.stage = reached.stage + 1 AND own.step = 0)
        AND NOT EXISTS (SELECT 1 FROM events WHERE kind IN ('rollback', 'adopted')
            AND (detail_json ->> '$.generation', detail_json ->> '$.to.stage', detail_json ->> '$.to.step')
                = (own.number, own.stage, own.step))
        AND NOT EXISTS (SELECT 1 FROM events WHERE kind = 'stage_ended'
            AND (detail_json ->> '$.generation', detail_json ->> '$.stage', detail_json ->> '$.step')
                = (own.number - 1, own.stage, own.step))",
];

/// Checks that the journal has the tables of version 3, that its pages and values are valid, and
/// that its records do not contradict each other.
pub(super) fn check_intact(connection: &Connection) -> Result<(), Error> {
    let pages: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if pages != "ok" {
        return Err(Error::Damaged(pages));
    }
    if read_schema(connection)? != schema_of(&[SCHEMA])? {
        return Err(Error::Damaged("its tables are not those of version 3".to_owned()));
    }
    TABLES.into_iter().try_for_each(|table| check_values(connection, table))?;
    for query in CONTRADICTIONS {
        let found: Option<String> = connection.query_row(query, [], |row| row.get(0)).optional()?;
        found.map_or(Ok(()), |problem| Err(Error::Damaged(problem)))?;
    }
    Ok(())
}

/// Checks that each value has the type of its column, that texts are UTF-8, and that texts in
/// columns `*_json` are JSON.
fn check_values(connection: &Connection, table: &str) -> Result<(), Error> {
    let columns: Vec<(String, String)> = connection
        .prepare("SELECT name, type FROM pragma_table_info(?)")?
        .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut statement = connection.prepare(&format!("SELECT * FROM {table}"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        for (index, (column, declared_type)) in columns.iter().enumerate() {
            let is_valid = match row.get_ref(index)? {
                ValueRef::Null => true,
                ValueRef::Integer(_) => declared_type == "INTEGER",
                ValueRef::Real(_) => declared_type == "REAL",
                ValueRef::Text(text) => declared_type == "TEXT" && is_valid_text(column, text),
                ValueRef::Blob(_) => false,
            };
            if !is_valid {
                return Err(Error::Damaged(format!("{table}.{column} has an invalid value")));
            }
        }
    }
    Ok(())
}

/// Whether a text in a column is UTF-8, and JSON if the column has JSON.
fn is_valid_text(column: &str, text: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(text) else { return false };
    !column.ends_with("_json") || serde_json::from_str::<IgnoredAny>(text).is_ok()
}
