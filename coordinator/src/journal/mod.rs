//! The journal: the durable record of a run, in `journal.sqlite` in the folder of
//! `serve --state` (SQLite, write-ahead log).
//! Other processes may read it while the coordinator writes.
//!
//! | table              | a row for every                 | columns                                                        |
//! |--------------------|---------------------------------|----------------------------------------------------------------|
//! | `run`              | run file that was accepted      | `number, name, seed, run_file_json, created, id`               |
//! | `generations`      | generation                      | `number, members_json, cause, formed_at, ready_at, ended_at, ended_because, source, stage, step, term` |
//! | `steps`            | step that a generation reported | `stage, step, generation, loss, learning_rate, gradient_norm, seconds, all_reduce_seconds, samples, summaries_json, at, slowest_rank, lag_seconds` |
//! | `checkpoints`      | checkpoint                      | `stage, step, generation, run_id, name, parameters_sha256, at, deleted` |
//! | `evaluations`      | evaluation                      | `stage, step, generation, metrics_json, at`                    |
//! | `evaluation_items` | image of an evaluation          | `stage, step, generation, image, caption, references_json, scores_json` |
//! | `attachments`      | worker that attached            | `number, rank, host, train_images, train_captions, skipped_images, validation_images, training_fingerprint, validation_fingerprint, models_fingerprint, holds, at` |
//! | `data_changes`     | change of the training data     | `number, generation, images_before, images_after, captions_before, captions_after, at` |
//! | `stage_ends`       | stage that ended with an earlier state | `number, stage, step, generation, cause, reason, at`    |
//! | `pauses`           | pause, and end of a pause       | `number, is_paused, stage, step, reason, at`                   |
//! | `history_moves`    | generation that starts elsewhere than at the committed position | `number, generation, from_stage, from_step, to_stage, to_step, source, at` |
//! | `run_ends`         | end of the run or of a coordinator process | `number, outcome, stage, step, reason, result, at`  |
//! | `guard_firings`    | guard rule that fired           | `number, stage, step, generation, metric, value, bound, is_above, action, first_stage, first_step, at` |
//! | `settings_changes` | changed run file                | `number, stage, step, changes_json, at`                        |
//! | `recoveries`       | recovery of the journal         | `number, stage, step, generation, checkpoint, run_ids_json, at` |
//! | `events`           | event, for people               | `number, at, kind, detail_json`                                |
//! | `chain`            | record in the tables above      | `sequence, kind, stage, step, generation, number, hash`        |
//!
//! - Times are Unix seconds. `step` counts applied updates everywhere: step `n` of a stage, from 1,
//!   consumed the samples `(n - 1) * batch .. n * batch`.
//! - A generation starts at its `(stage, step)`. Steps of earlier generations beyond that position
//!   were given up, or were not selected (see the next item). If the generation trains them again,
//!   they have several rows, and the row of the highest generation counts.
//! - A stage may end with an earlier checkpoint than its last: the row in `stage_ends` has its
//!   position. With cause `guard`, later steps are given up. With `best_state` or `early_stopping`,
//!   later steps are not selected: the run continues from the earlier checkpoint, and the later
//!   steps stay in curves, reports and the audit.
//! - In `guard_firings`, `(first_stage, first_step)` is the position of the parameters with the
//!   first of the consecutive values beyond the bound. Rules that roll back disqualify it and all
//!   later positions.
//! - `events` is a log for people, and no decision of a coordinator or an audit depends on it:
//!   page, `coordinator events` and report show it. A record in one of the nine tables above it is
//!   an event, too. The detail of `stage_ended` also has `passed_over`: later checkpoints, each
//!   with the reason why it was not selected.
//! - `holds` is the position of the training state that the worker holds, as text, or NULL.
//! - `generation` in `stage_ends` and `guard_firings` is the last one at that time.
//! - The view `cuts` (`generation, stage, step`) has the branch points: the starts of generations
//!   and the ends of stages. Rows of generations up to `generation` beyond `(stage, step)` are not
//!   part of the present history.
//! - Kinds of events are the names of [`EventKind`](dico_engine::EventKind)s, and `guard`
//!   with `{stage, step, metric, value, bound, action}`.
//! - Rows are only added, and each column is written once. The rows of `chain` name the records in
//!   the order in which they were written (see [`chain`]).
//! - The last row of `run` is valid. A row of `settings_changes` names the step after which a new
//!   run file applies instead of the one before; `changes_json` is a list of `{key, old, new,
//!   mutability}`. `created` is the time at which the coordinator accepted the run file.
//! - A row of `recoveries` says that the journal replaced a lost or damaged one: the run resumed
//!   from this checkpoint, under another `id`. Earlier records are missing.
//! - From the generation of a row in `data_changes` on, the run trains on other data, beginning
//!   with a new epoch.
//! - A journal of the version before is migrated when a coordinator opens it, and a copy of it is
//!   kept: see `migration`.
//! - `members_json` is a list of `{rank, host, version, device}`, where `rank` is the worker id.
//!   `source` is `worker N`, `checkpoint NAME` or `seed`.
//! - `summaries_json` maps names to `{count, mean, min, max, p05, p25, p50, p75, p95}`.
//! - Values that are not finite are NULL.

mod accepted_changes;
pub mod browse;
mod chain;
mod error;
mod integrity;
mod migration;
#[cfg(test)]
mod migration_tests;
mod queries;
pub mod read_only;
mod recovery;
#[cfg(test)]
mod report_tests;
mod restore;
mod schema;
mod settings;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path;

use checkpoint_store::JournalHead;
use config::RunFile;
use dico_engine::record::Record;
use rusqlite::{Connection, OptionalExtension};

pub use self::{
    accepted_changes::{AcceptedChanges, SettingsError},
    chain::ChainCheck,
    error::Error,
    recovery::RecoveryCheckpoints,
};
use self::{
    chain::ChainWriter,
    integrity::{check_empty, check_intact},
    migration::{copy_before_migration, migrate},
    schema::{FILE_NAME, MIGRATED_VERSION, SCHEMA, SCHEMA_SINCE_7, SCHEMA_VERSION},
    write::{write_record, write_run_file},
};
use crate::random_ids;

/// The journal of a run, opened for writing by the coordinator.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    /// Appends an entry to the hash chain for each record.
    chain: ChainWriter,
    /// The lock of the journal's folder, held while the journal is open; `None` for a journal in
    /// memory.
    _lock: Option<std::fs::File>,
}

impl Journal {
    /// Opens the journal in `folder`. Creates folder and journal if they do not exist.
    ///
    /// # Errors
    /// Another coordinator uses the folder, or the journal belongs to another run.
    pub fn open(folder: &Path, file: &RunFile) -> Result<Self, Error> {
        Self::open_with_changes(folder, file, AcceptedChanges::Free)
    }

    /// As [`Self::open`]. `accept` says which settings of the journal's run file the new `file` may
    /// change.
    ///
    /// # Errors
    /// Another coordinator uses the folder, the run file changes a setting that may not change, or
    /// the journal is damaged.
    pub fn open_with_changes(folder: &Path, file: &RunFile, accept: AcceptedChanges) -> Result<Self, Error> {
        let lock = lock(folder)?;
        let connection = Connection::open(folder.join(FILE_NAME))?;
        check_intact(&connection)?;
        copy_before_migration(&connection, folder)?;
        let journal = Self::new_with_changes(connection, file, accept)?;
        Ok(Self { _lock: Some(lock), ..journal })
    }

    /// Whether `folder` has a journal, intact or damaged.
    #[must_use]
    pub fn exists(folder: &Path) -> bool {
        std::fs::metadata(folder.join(FILE_NAME)).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// Opens the journal of this connection. Creates the tables if they do not exist.
    ///
    /// # Errors
    /// The journal belongs to another run.
    pub fn new(connection: Connection, file: &RunFile) -> Result<Self, Error> {
        Self::new_with_changes(connection, file, AcceptedChanges::Free)
    }

    fn new_with_changes(connection: Connection, file: &RunFile, accept: AcceptedChanges) -> Result<Self, Error> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "busy_timeout", 5000)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if ![SCHEMA_VERSION, MIGRATED_VERSION, 0].contains(&version) {
            return Err(Error::OtherVersion { found: version });
        }
        let transaction = connection.unchecked_transaction()?;
        if version == 0 {
            check_empty(&transaction)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute_batch(SCHEMA_SINCE_7)?;
            transaction.execute_batch(chain::SCHEMA)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        let mut chain = ChainWriter::open(&transaction)?;
        if version == MIGRATED_VERSION {
            migrate(&transaction, &mut chain)?;
            tracing::info!(from = version, to = SCHEMA_VERSION, "the journal was migrated");
        }
        let query = "SELECT run_file_json FROM run ORDER BY number DESC LIMIT 1";
        let recorded: Option<String> = transaction.query_row(query, [], |row| row.get(0)).optional()?;
        if recorded.is_none() {
            write_run_file(&transaction, &mut chain, file, &random_ids::random_hex_id().map_err(Error::Random)?)?;
        }
        transaction.commit()?;
        let mut journal = Self { connection, chain, _lock: None };
        if let Some(recorded) = recorded {
            journal.apply_settings(&recorded, file, accept)?;
        }
        Ok(journal)
    }

    /// Writes records in one transaction. They are durable on return.
    ///
    /// # Errors
    /// SQLite fails, for example because the disk is full.
    pub fn write(&mut self, records: &[Record]) -> Result<(), Error> {
        let (transaction, mut chain) = (self.connection.transaction()?, self.chain.clone());
        for record in records {
            write_record(&transaction, &mut chain, record)?;
        }
        transaction.commit()?;
        self.chain = chain;
        Ok(())
    }

    /// Converts the journal into one for reading.
    #[cfg(test)]
    pub(crate) fn into_read_only(self) -> read_only::ReadOnlyJournal {
        read_only::ReadOnlyJournal { connection: self.connection }
    }

    /// The number and the hash of the last record on disk.
    #[must_use]
    pub fn head(&self) -> JournalHead {
        self.chain.head()
    }

    /// Whether the journal has the record that `head` names, with the same hash.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn contains(&self, head: &JournalHead) -> Result<bool, Error> {
        Ok(chain::contains(&self.connection, head)?)
    }
}

/// Locks the journal's folder for this coordinator, until the returned file is closed.
fn lock(folder: &Path) -> Result<std::fs::File, Error> {
    let open_error = |path: &Path, source| Error::Open { path: path.to_owned(), source };
    std::fs::create_dir_all(folder).map_err(|source| open_error(folder, source))?;
    let path = folder.join("lock");
    let lock = std::fs::File::create(&path).map_err(|source| open_error(&path, source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse),
        Err(std::fs::TryLockError::Error(source)) => Err(open_error(&path, source)),
    }
}
