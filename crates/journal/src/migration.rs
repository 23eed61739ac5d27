//! Migration of journals of earlier versions, when a coordinator opens them.
//!
//! | version | migration                                                                          |
//! |---------|------------------------------------------------------------------------------------|
//! | 3       | [`version_3`]: its tables become those of version 6, and `version_6` does the rest |
//! | 4, 5    | refused: only commits of a few hours between 3 and 6 wrote them, and no release    |
//! | 6       | [`version_6`]: its events become typed records                                     |
//!
//! Before a migration the journal is copied to `journal.sqlite.version-N` in its folder, for the
//! program that wrote it. One transaction then migrates it, so that a crash leaves either the old
//! journal or the new one. The event `migrated` in the new journal has both versions, and the name
//! and the SHA-256 of the copy.

mod version_3;
mod version_6;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use dico_engine::event_kind::EventKind;
use rusqlite::{Connection, Transaction};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{
    Error,
    chain::ChainWriter,
    schema::{MIGRATED_VERSIONS, SCHEMA_VERSION},
    write::write_event,
};

/// The migration of a journal that is copied already.
#[derive(Debug)]
pub(super) struct Migration {
    /// The version of the journal, one of [`MIGRATED_VERSIONS`].
    version: i64,
    /// The path of the database; none if it is in memory.
    path: Option<PathBuf>,
    /// The copy; none for a database in memory.
    copy: Option<DatabaseCopy>,
}

/// A copy of a journal before its migration.
#[derive(Debug)]
struct DatabaseCopy {
    /// Its file name.
    name: String,
    /// The SHA-256 of the file, in hex.
    sha256: String,
}

impl Migration {
    /// Copies a journal of an earlier version. None for a journal of the present version, and for
    /// one without tables.
    ///
    /// # Errors
    /// The journal has another version, or the copy cannot be written.
    pub fn prepare(connection: &Connection) -> Result<Option<Self>, Error> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if [SCHEMA_VERSION, 0].contains(&version) {
            return Ok(None);
        }
        if !MIGRATED_VERSIONS.contains(&version) {
            return Err(Error::OtherVersion { found: version });
        }
        let path = connection.path().filter(|path| !path.is_empty()).map(PathBuf::from);
        let migration = Self { version, path, copy: None };
        let copy = migration.path.as_deref().map(|path| copy_database(connection, path, version)).transpose();
        Ok(Some(Self { copy: copy.map_err(|error| migration.error(error))?, ..migration }))
    }

    /// Migrates the journal, and records the migration. Returns the writer of its hash chain.
    ///
    /// # Errors
    /// The journal is damaged, or its run cannot continue under this version.
    pub fn execute(self, transaction: &Transaction<'_>) -> Result<ChainWriter, Error> {
        self.migrate(transaction).map_err(|error| self.error(error))
    }

    fn migrate(&self, transaction: &Transaction<'_>) -> Result<ChainWriter, Error> {
        let mut detail = json!({ "from_version": self.version, "to_version": SCHEMA_VERSION });
        if let Some(DatabaseCopy { name, sha256 }) = &self.copy {
            (detail["copy"], detail["copy_sha256"]) = (json!(name), json!(sha256));
        }
        let (mut chain, events) = match self.version {
            version_3::VERSION => {
                let (chain, events) = version_3::convert(transaction)?;
                detail["records_without_hash"] = json!(chain.head().sequence);
                (chain, events)
            }
            _ => (ChainWriter::open(transaction)?, version_6::read_events(transaction)?),
        };
        version_6::migrate(transaction, &mut chain, &events)?;
        write_event(transaction, &mut chain, EventKind::Migrated.name(), &detail)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        tracing::info!(from = self.version, to = SCHEMA_VERSION, "the journal is migrated");
        Ok(chain)
    }

    /// The error of a journal that is not migrated. `serve --recover` needs checkpoints that name
    /// their generation, as those since version 6 do: a journal of version 3 has its own error.
    fn error(&self, error: Error) -> Error {
        if self.version != version_3::VERSION || error.is_transient() {
            return error;
        }
        let problem = match error {
            Error::Damaged(problem) => problem,
            Error::Sqlite(error) => error.to_string(),
            Error::RunFile(problem) => format!("its run file: {problem}"),
            other => return other,
        };
        Error::NotMigrated { path: self.path.clone().unwrap_or_default(), version: self.version, problem }
    }
}

/// Copies a database to `journal.sqlite.version-N` in its folder. A copy that exists is replaced:
/// it is that of an interrupted migration, or of a journal that was refused.
fn copy_database(connection: &Connection, path: &Path, version: i64) -> Result<DatabaseCopy, Error> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = format!("{file_name}.version-{version}");
    let (copy, partial) = (path.with_file_name(&name), path.with_file_name(format!("{name}.partial")));
    let open_error = |source| Error::Open { path: copy.clone(), source };
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(open_error(error)),
        _ => {}
    }
    connection.execute("VACUUM INTO ?", [partial.to_string_lossy()])?;
    let sha256 = seal_copy(&partial, &copy).map_err(open_error)?;
    Ok(DatabaseCopy { name, sha256 })
}

/// Makes the file `partial` durable, under the name `copy`. Returns its SHA-256, in hex.
fn seal_copy(partial: &Path, copy: &Path) -> io::Result<String> {
    let mut file = File::open(partial)?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash)?;
    file.sync_all()?;
    std::fs::rename(partial, copy)?;
    if let Some(folder) = copy.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(format!("{:x}", hash.finalize()))
}
