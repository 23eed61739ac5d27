//! The error of the journal.

use std::path::PathBuf;

use super::{
    SettingsError,
    schema::{MIGRATED_VERSIONS, SCHEMA_VERSION},
};

/// Why a journal cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system cannot create, open, lock or rename the journal's folder or a file in
    /// it.
    #[error("{}: {source}", path.display())]
    Open {
        /// The folder or file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Another coordinator has locked the journal's folder.
    #[error("another coordinator is using this folder; stop it or choose another --state")]
    InUse,
    /// The run file changes settings that may not change, or may change only if the user accepts
    /// that.
    #[error("{0}")]
    Settings(Box<SettingsError>),
    /// Another version of the program, with other tables, wrote the journal.
    #[error(
        "the journal has version {found}, this program reads and writes version {SCHEMA_VERSION}: `coordinator serve` \
         migrates versions {} and {}; use the program that wrote another version, or another --state or output",
        MIGRATED_VERSIONS[0],
        MIGRATED_VERSIONS[1]
    )]
    OtherVersion {
        /// The version of the journal's tables.
        found: i64,
    },
    /// A journal of an earlier version is damaged, or this program cannot continue its run. It is
    /// unchanged.
    #[error(
        "{}: the journal of version {version} cannot be migrated: {problem}; restore an intact copy of it, continue the run \
         with the program that wrote it, or start a new run from its last checkpoint",
        path.display()
    )]
    NotMigrated {
        /// The path of the database.
        path: PathBuf,
        /// The version of the journal's tables.
        version: i64,
        /// What is damaged, or what has changed since that version.
        problem: String,
    },
    /// The operating system provides no random numbers for a run id.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// This program cannot parse the stored run file.
    #[error("the journal's run file: {0}")]
    RunFile(String),
    /// The content of the tables does not match the hash chain, or SQLite cannot read the file.
    #[error(
        "the journal is damaged ({0}); restore an intact copy, or serve with --recover to resume from the newest sealed checkpoint"
    )]
    Damaged(String),
    /// SQLite failed.
    #[error("journal: {0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
        match &error {
            rusqlite::Error::SqliteFailure(failure, _) if matches!(failure.code, DatabaseCorrupt | NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Sqlite(error),
        }
    }
}

impl Error {
    /// Whether a retry may succeed: the disk is full or fails, or the database is locked.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        let Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = self else { return false };
        use rusqlite::ErrorCode::{DatabaseBusy, DiskFull, SystemIoFailure};
        matches!(failure.code, DiskFull | SystemIoFailure | DatabaseBusy)
    }
}
