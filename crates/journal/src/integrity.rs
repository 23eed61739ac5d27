//! The check that a journal is intact: its database pages, its hash chain and its tables.

use rusqlite::Connection;

use super::{
    ChainCheck, Error, chain,
    schema::{SCHEMA, SCHEMA_SINCE_7, SCHEMA_VERSION},
};

/// Checks the pages and every record of a journal before the coordinator writes to it. Does not
/// check a new journal, or one of another version: [`Journal`](super::Journal) refuses the latter.
pub(super) fn check_intact(connection: &Connection) -> Result<(), Error> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != SCHEMA_VERSION {
        return Ok(());
    }
    refuse_problems(&verify(connection)?)
}

/// Fails if the check has found problems.
pub(super) fn refuse_problems(ChainCheck { problems, count, .. }: &ChainCheck) -> Result<(), Error> {
    match problems.first() {
        None => Ok(()),
        Some(first) if *count == 1 => Err(Error::Damaged(first.clone())),
        Some(first) => Err(Error::Damaged(format!("{first}; and {} more", count - 1))),
    }
}

/// Checks that a database without a version has no tables: it is a new journal, and not one whose
/// version was removed.
pub(super) fn check_empty(connection: &Connection) -> Result<(), Error> {
    match read_schema(connection)?.first() {
        None => Ok(()),
        Some((name, _)) => Err(Error::Damaged(format!("it has the table {name}, but no version"))),
    }
}

/// Checks the database pages, the hash chain, and the definitions of tables, views and indices.
pub(super) fn verify(connection: &Connection) -> Result<ChainCheck, Error> {
    let pages: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if pages != "ok" {
        return Err(Error::Damaged(pages));
    }
    let mut chain_check = chain::verify(connection)?;
    if read_schema(connection)? != schema_of(&[SCHEMA, SCHEMA_SINCE_7, chain::SCHEMA])? {
        chain_check.add_problem("the tables or views of the journal were changed".to_owned());
    }
    Ok(chain_check)
}

/// The names and definitions of the tables, views and indices that these scripts create.
pub(super) fn schema_of(scripts: &[&str]) -> rusqlite::Result<Vec<(String, String)>> {
    let fresh = Connection::open_in_memory()?;
    scripts.iter().try_for_each(|script| fresh.execute_batch(script))?;
    read_schema(&fresh)
}

/// The names and definitions of tables, views and indices, without those of SQLite itself.
pub(super) fn read_schema(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let query = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name";
    connection.prepare(query)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
