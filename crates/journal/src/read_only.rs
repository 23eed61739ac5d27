//! Read-only access to a journal, which a coordinator may be writing at the same time. This file
//! opens and checks the journal; each module below reads one kind of records.

pub(super) mod checkpoints;
pub(super) mod evaluations;
pub(super) mod event_log;
pub(super) mod history;
pub(super) mod run_events;
pub(super) mod steps;

use std::{collections::BTreeSet, path::Path};

use config::RunFile;
use proto::v1;
use rusqlite::{Connection, OpenFlags, Row};

use super::{ChainCheck, Error, FILE_NAME, chain, integrity::verify, queries, schema::SCHEMA_VERSION};

/// A journal opened for reading.
#[derive(Debug)]
pub struct ReadOnlyJournal {
    pub(super) connection: Connection,
}

impl ReadOnlyJournal {
    /// Opens the journal in `folder`.
    ///
    /// # Errors
    /// The folder has no journal, or another version of the program wrote it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE_NAME);
        if !path.is_file() {
            let subfolder = folder.join("coordinator");
            let problem = match subfolder.join(FILE_NAME).is_file() {
                true => format!("there is no journal here, but there is one in {}", subfolder.display()),
                false => "there is no journal".to_owned(),
            };
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, problem);
            return Err(Error::Open { path, source });
        }
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            return Err(Error::OtherVersion { found: version });
        }
        Ok(Self::of_connection(connection))
    }

    /// Reads a journal of the present version through this connection.
    pub(super) fn of_connection(connection: Connection) -> Self {
        Self { connection }
    }

    /// Starts a read transaction. All later queries see the journal as of the first one.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn begin_snapshot(&self) -> Result<(), Error> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN")?;
        }
        Ok(())
    }

    /// Checks the database pages, the definitions of the tables, and the hash chain: all records
    /// are unchanged, none is missing, and none was added without an entry.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn verify(&self) -> Result<ChainCheck, Error> {
        verify(&self.connection)
    }

    /// Whether the journal has the record that `head` names, with the same hash.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn contains(&self, head: &v1::JournalHead) -> Result<bool, Error> {
        Ok(chain::contains(&self.connection, head)?)
    }

    /// The run's id.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn run_id(&self) -> Result<String, Error> {
        queries::run_id(&self.connection)
    }

    /// The ids that the run had in earlier journals, which this one replaced.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn former_run_ids(&self) -> Result<BTreeSet<String>, Error> {
        queries::former_run_ids(&self.connection)
    }

    /// The last run file that the coordinator accepted.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn run_file(&self) -> Result<RunFile, Error> {
        queries::run_file(&self.connection)
    }

    /// When the run was created, in Unix seconds.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn created_at(&self) -> Result<f64, Error> {
        Ok(self.connection.query_row("SELECT created FROM run ORDER BY number LIMIT 1", [], |row| row.get(0))?)
    }

    /// Reads all rows of a query without parameters.
    pub(super) fn query_all<T>(
        &self,
        query: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        Ok(self.connection.prepare(query)?.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}
