//! The journal: the durable record of a run, in `journal.sqlite` in the folder of
//! `serve --state` (SQLite, write-ahead log). The coordinator writes it; other processes may read
//! it meanwhile. No other crate has SQL on the journal, except for tests that tamper with it.
//!
//! ```text
//!   Journal                      ReadOnlyJournal
//!      |---- settings               |---- read_only     the run, its settings, the check of the file
//!      |---- restore                |---- history       generations, steps, branches, ends of stages
//!      |---- recovery               |---- run_events    attachments, pauses, guard, ends of the run
//!      |---- migration              |---- steps         the measurements of steps
//!      |---- write                  |---- evaluations   scores and captions
//!      |                            |---- checkpoints
//!      |                            '---- event_log     events, for people
//!      '------------.   .-----------'
//!            chain, integrity, queries, schema
//! ```
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
//! - `events` is a log for people: page, `coordinator events` and report show it, and nothing else
//!   depends on it. A record in one of the nine tables above it is an event, too. The detail of
//!   `stage_ended` also has `passed_over`: later checkpoints, each with the reason why it was not
//!   selected.
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
//! - A journal of version 3 or 6 is migrated when a coordinator opens it, and a copy of it is kept:
//!   see `migration`. The hash chain of a journal of version 3 begins with the migration.
//! - `members_json` is a list of `{rank, host, version, device}`, where `rank` is the worker id.
//!   `source` is `worker N`, `checkpoint NAME` or `seed`.
//! - `summaries_json` maps names to `{count, mean, min, max, p05, p25, p50, p75, p95}`.
//! - Values that are not finite are NULL.

mod accepted_changes;
mod chain;
mod error;
mod evaluated_caption;
mod integrity;
mod migration;
#[cfg(test)]
mod migration_tests;
mod queries;
mod read_only;
mod recovery;
#[cfg(test)]
mod report_tests;
mod restore;
mod run_id;
mod schema;
mod settings;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod write;

use std::{collections::BTreeMap, path::Path};

use config::RunFile;
use dico_engine::record::Record;
use proto::v1;
use rusqlite::{Connection, OptionalExtension};

pub use dico_engine::lineage::StateFate;

pub use self::{
    accepted_changes::{AcceptedChanges, SettingsError},
    chain::ChainCheck,
    error::Error,
    evaluated_caption::EvaluatedCaption,
    queries::GuardFiring,
    read_only::{
        ReadOnlyJournal,
        checkpoints::RecordedCheckpoint,
        evaluations::{Caption, ComparedImage, Evaluation, EvaluationId, ScoredCaption},
        event_log::{CHECKPOINT_KIND, EVALUATION_KIND, Event, EventCursor, GENERATION_KIND, RowCounters, event_kinds},
        history::{Generation, HistoryMove, LineageCursor, StageEnd, Step},
        run_events::{AttachedWorker, Pause, Recovery, RunEnd, RunOutcome, SettingsChange},
        steps::{Distribution, RecordedStep},
    },
    recovery::RecoveryCheckpoints,
    write::GUARD_KIND,
};
use self::{
    chain::ChainWriter,
    integrity::{check_empty, check_intact},
    migration::Migration,
    run_id::random_run_id,
    schema::{FILE_NAME, SCHEMA, SCHEMA_SINCE_7, SCHEMA_VERSION},
    write::{write_record, write_run_file},
};

/// The journal of a run, opened for writing by the coordinator.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    /// Appends an entry to the hash chain for each record.
    chain: ChainWriter,
    /// The captions of evaluations that are not recorded yet, by the number of the evaluation.
    captions: BTreeMap<u64, Vec<EvaluatedCaption>>,
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
        let journal = Self::new_with_changes(connection, file, accept)?;
        Ok(Self { _lock: Some(lock), ..journal })
    }

    /// Whether `folder` has a journal, intact or damaged.
    #[must_use]
    pub fn exists(folder: &Path) -> bool {
        std::fs::metadata(folder.join(FILE_NAME)).is_ok_and(|metadata| metadata.len() > 0)
    }

    /// Creates a journal in memory, for simulations and tests.
    ///
    /// # Errors
    /// The operating system provides no random numbers for a run id.
    pub fn in_memory(file: &RunFile) -> Result<Self, Error> {
        Self::new_with_changes(Connection::open_in_memory()?, file, AcceptedChanges::Free)
    }

    /// Opens the journal of this connection. Creates the tables if they do not exist.
    fn new_with_changes(connection: Connection, file: &RunFile, accept: AcceptedChanges) -> Result<Self, Error> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "busy_timeout", 5000)?;
        let migration = Migration::prepare(&connection)?;
        let transaction = connection.unchecked_transaction()?;
        let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 0 {
            check_empty(&transaction)?;
            transaction.execute_batch(SCHEMA)?;
            transaction.execute_batch(SCHEMA_SINCE_7)?;
            transaction.execute_batch(chain::SCHEMA)?;
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        let mut chain = match migration {
            Some(migration) => migration.execute(&transaction)?,
            None => ChainWriter::open(&transaction)?,
        };
        let query = "SELECT run_file_json FROM run ORDER BY number DESC LIMIT 1";
        let recorded: Option<String> = transaction.query_row(query, [], |row| row.get(0)).optional()?;
        if recorded.is_none() {
            write_run_file(&transaction, &mut chain, file, &random_run_id()?)?;
        }
        transaction.commit()?;
        let mut journal = Self { connection, chain, captions: BTreeMap::new(), _lock: None };
        if let Some(recorded) = recorded {
            journal.apply_settings(&recorded, file, accept)?;
        }
        Ok(journal)
    }

    /// Takes the captions of an evaluation, sorted by image name. They are written with the record
    /// of the evaluation ([`Record::Evaluated`]).
    pub fn stage_captions(&mut self, evaluation: u64, captions: Vec<EvaluatedCaption>) {
        self.captions.insert(evaluation, captions);
    }

    /// Writes records in one transaction. They are durable on return.
    ///
    /// # Errors
    /// SQLite fails, for example because the disk is full.
    pub fn write(&mut self, records: &[Record]) -> Result<(), Error> {
        let (transaction, mut chain) = (self.connection.transaction()?, self.chain.clone());
        for record in records {
            write_record(&transaction, &mut chain, record, &self.captions)?;
        }
        transaction.commit()?;
        self.chain = chain;
        for record in records {
            if let Record::Evaluated { evaluation, .. } = record {
                self.captions.remove(evaluation);
            }
        }
        Ok(())
    }

    /// Converts the journal into one for reading.
    #[must_use]
    pub fn into_read_only(self) -> ReadOnlyJournal {
        ReadOnlyJournal::of_connection(self.connection)
    }

    /// The number and the hash of the last record on disk.
    #[must_use]
    pub fn head(&self) -> v1::JournalHead {
        self.chain.head()
    }

    /// Whether the journal has the record that `head` names, with the same hash.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn contains(&self, head: &v1::JournalHead) -> Result<bool, Error> {
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
