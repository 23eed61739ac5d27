//! The tables of the journal, their version, and the check of a journal before a coordinator writes
//! to it.

use rusqlite::Connection;

use super::{ChainCheck, Error, chain};

/// The version of the tables. A journal with another version is refused.
pub(super) const SCHEMA_VERSION: i64 = 6;

/// Creates all tables except `chain`, and the view `cuts`. The documentation of
/// [`journal`](super) explains them.
pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS run (number INTEGER PRIMARY KEY, name TEXT NOT NULL, seed INTEGER NOT NULL,
    run_file_json TEXT NOT NULL, created REAL NOT NULL, id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL, term INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, run_id TEXT NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_by_kind ON events (kind);
CREATE VIEW IF NOT EXISTS cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
";

/// Checks the pages and every record of a journal before the coordinator writes to it. Does not
/// check a new journal, or one of another version: [`Journal`](super::Journal) refuses the latter.
pub(super) fn check_intact(connection: &Connection) -> Result<(), Error> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != SCHEMA_VERSION {
        return Ok(());
    }
    let ChainCheck { problems, count, .. } = verify(connection)?;
    match problems.first() {
        None => Ok(()),
        Some(first) if count == 1 => Err(Error::Damaged(first.clone())),
        Some(first) => Err(Error::Damaged(format!("{first}; and {} more", count - 1))),
    }
}

/// Checks the database pages, the hash chain, and the definitions of tables, views and indices.
pub(super) fn verify(connection: &Connection) -> Result<ChainCheck, Error> {
    let pages: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if pages != "ok" {
        return Err(Error::Damaged(pages));
    }
    let mut chain_check = chain::verify(connection)?;
    if read_schema(connection)? != expected_schema()? {
        chain_check.add_problem("the tables or views of the journal were changed".to_owned());
    }
    Ok(chain_check)
}

/// The names and definitions of a new journal's tables, views and indices.
fn expected_schema() -> rusqlite::Result<Vec<(String, String)>> {
    let fresh = Connection::open_in_memory()?;
    fresh.execute_batch(SCHEMA)?;
    fresh.execute_batch(chain::SCHEMA)?;
    read_schema(&fresh)
}

/// The names and definitions of tables, views and indices, without those of SQLite itself.
fn read_schema(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let query = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name";
    connection.prepare(query)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
