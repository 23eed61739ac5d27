//! The journal: the durable record of a run, in `<state>/journal.sqlite` (SQLite, write-ahead log).
//! Other processes may read it while the coordinator writes.
//!
//! | table              | a row for every                 | columns                                                        |
//! |--------------------|---------------------------------|----------------------------------------------------------------|
//! | `run`              | run file that was accepted      | `number, name, seed, run_file_json, created, id`               |
//! | `generations`      | generation                      | `number, members_json, cause, formed_at, ready_at, ended_at, ended_because, source, stage, step, term` |
//! | `steps`            | step a generation reported      | `stage, step, generation, loss, learning_rate, gradient_norm, seconds, all_reduce_seconds, samples, summaries_json, at, slowest_rank, lag_seconds` |
//! | `checkpoints`      | checkpoint                      | `stage, step, generation, run_id, name, parameters_sha256, at, deleted` |
//! | `evaluations`      | evaluation                      | `stage, step, generation, metrics_json, at`                    |
//! | `evaluation_items` | image of an evaluation          | `stage, step, generation, image, caption, references_json, scores_json` |
//! | `events`           | event                           | `number, at, kind, detail_json`                                |
//! | `chain`            | record of all of these          | `sequence, kind, stage, step, generation, number, hash`        |
//!
//! - Times are Unix seconds. `step` counts applied updates everywhere: step `n` of a stage, from 1, consumed the samples
//!   `(n - 1) * batch .. n * batch`.
//! - A generation starts at its `(stage, step)`. What an earlier generation recorded beyond the start of a later one was
//!   given up, unless the later one repeats it: of several rows of a step the one of the highest generation counts.
//! - A stage may end with an earlier state than its last: event `stage_ended` with `{stage, step, generation, cause, reason,
//!   passed_over}`. With cause `guard` later states are given up. With `best_state` or `early_stopping` they were trained,
//!   but not selected: the run goes on from the earlier state, and they stay in curves, reports and the audit.
//! - The view `cuts` (`generation, stage, step`) has the starts of generations and the ends of stages: no row of a generation
//!   up to `generation` that lies beyond `(stage, step)` is of the present history.
//! - Kinds of events are the names of [`EventKind`]s, and `guard` with `{stage, step, metric, value, bound, action}`.
//! - Rows are added, and each column is written once; the entries of `chain` tell in which order, and of what (see [`chain`]).
//! - The last run file is in force. An event `settings_changed` with `{stage, step, changes: [{key, old, new, mutability}]}` says from
//!   which step on it differs from the one before. `created` is when it was accepted.
//! - An event `recovered` with `{stage, step, checkpoint, run_ids, ..}` is the first of a journal that took the place of one that was lost
//!   or damaged: the run goes on from this checkpoint, under another `id`. What came before is not in it.
//! - An event `data_changed` of the split `training`, `{generation, images_before_and_after, captions_before_and_after}`, says that from
//!   that generation on the run trains on other data, beginning with a new epoch.
//! - `members_json` is a list of `{rank, host, version, device}`; `source` is `rank N`, `checkpoint NAME` or `seed`.
//! - `summaries_json` maps names to `{count, mean, min, max, p05, p25, p50, p75, p95}`.
//! - Values that are not finite are NULL.

pub mod browse;
mod chain;
pub mod history;
mod recovery;
mod settings;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

pub use chain::ChainCheck;
use chain::{ChainWriter, Entry, Kind};
use checkpoint_store::JournalHead;
use config::RunFile;
use proto::v1;
pub use recovery::Recovery;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde_json::json;
pub use settings::{AcceptedChanges, SettingsError};
use statistics::Summary;

use crate::random;
use crate::run::{
    data::DataChange,
    guard::TriggeredRule,
    lineage::BranchPoints,
    model_selection::Scores,
    plan::{Boundaries, Boundary, Place, StageEnds},
    record::{Checkpoint, EventKind, Record, RestoredRun, StepMeans},
    statistics::StepStatistics,
    terms::TermLog,
};

/// The version of the tables. A journal of another version is refused.
const VERSION: i64 = 6;

const SCHEMA: &str = "
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

/// Why a journal cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its folder or file cannot be used.
    #[error("{}: {source}", path.display())]
    Open {
        /// The folder or file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// Another coordinator has locked it.
    #[error("another coordinator is using this folder; stop it or choose another --state")]
    InUse,
    /// Its run has other settings, some of which may not change, or only if the user accepts the
    /// change.
    #[error("{0}")]
    Settings(Box<SettingsError>),
    /// It was written by another version of the program.
    #[error("the journal has version {found}, this program writes version {VERSION}; use another --state or output")]
    OtherVersion {
        /// The journal's version.
        found: i64,
    },
    /// No random run id could be made.
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
    /// The stored run file is invalid for this program.
    #[error("the journal's run file: {0}")]
    RunFile(String),
    /// Its content does not match its hash chain.
    #[error(
        "the journal is damaged ({0}); bring a whole copy back, or serve with --recover to go on from the newest sealed checkpoint"
    )]
    Damaged(String),
    /// SQLite has failed.
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
    /// Whether a retry may succeed: the disk is full, or does not answer.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        let Self::Sqlite(rusqlite::Error::SqliteFailure(failure, _)) = self else { return false };
        use rusqlite::ErrorCode::{DatabaseBusy, DiskFull, SystemIoFailure};
        matches!(failure.code, DiskFull | SystemIoFailure | DatabaseBusy)
    }
}

/// The journal of a run, opened by its coordinator for writing.
#[derive(Debug)]
pub struct Journal {
    connection: Connection,
    chain: ChainWriter,
    /// The file lock, held for as long as the journal is open.
    _lock: Option<std::fs::File>,
}

impl Journal {
    /// Opens the journal in the folder `state`. Creates folder and journal if they do not exist.
    ///
    /// # Errors
    /// When another coordinator uses it, or it is of another run.
    pub fn open(state: &Path, file: &RunFile) -> Result<Self, Error> {
        Self::open_accepting(state, file, AcceptedChanges::Free)
    }

    /// As [`Self::open`]; `accept` says which changed settings are taken.
    ///
    /// # Errors
    /// When another coordinator uses it, its run has settings that are not allowed to change, or it is damaged.
    pub fn open_accepting(state: &Path, file: &RunFile, accept: AcceptedChanges) -> Result<Self, Error> {
        let lock = lock(state)?;
        let connection = Connection::open(state.join(FILE))?;
        check(&connection)?;
        let journal = Self::new_accepting(connection, file, accept)?;
        Ok(Self { _lock: Some(lock), ..journal })
    }

    /// Whether there is a journal in the folder `state`, intact or not.
    #[must_use]
    pub fn exists(state: &Path) -> bool {
        std::fs::metadata(state.join(FILE)).is_ok_and(|found| found.len() > 0)
    }

    /// A journal with this connection. Creates the tables if they do not exist.
    ///
    /// # Errors
    /// When it is of another run.
    pub fn new(connection: Connection, file: &RunFile) -> Result<Self, Error> {
        Self::new_accepting(connection, file, AcceptedChanges::Free)
    }

    fn new_accepting(connection: Connection, file: &RunFile, accept: AcceptedChanges) -> Result<Self, Error> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "busy_timeout", 5000)?;
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != VERSION && version != 0 {
            return Err(Error::OtherVersion { found: version });
        }
        let transaction = connection.unchecked_transaction()?;
        if version == 0 {
            transaction.execute_batch(SCHEMA)?;
            transaction.execute_batch(chain::SCHEMA)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        let mut chain = ChainWriter::open(&transaction)?;
        let query = "SELECT run_file_json FROM run ORDER BY number DESC LIMIT 1";
        let known: Option<String> = transaction.query_row(query, [], |row| row.get(0)).optional()?;
        if known.is_none() {
            write_run_file(&transaction, &mut chain, file, &random::name().map_err(Error::Random)?)?;
        }
        transaction.commit()?;
        let mut journal = Self { connection, chain, _lock: None };
        if let Some(known) = known {
            journal.take_settings(&known, file, accept)?;
        }
        Ok(journal)
    }

    /// Writes records in one transaction. They are on disk on return.
    ///
    /// # Errors
    /// When SQLite fails, e.g. because the disk is full.
    pub fn write(&mut self, records: &[Record]) -> Result<(), Error> {
        let (transaction, mut chain) = (self.connection.transaction()?, self.chain.clone());
        for record in records {
            write(&transaction, &mut chain, record)?;
        }
        transaction.commit()?;
        self.chain = chain;
        Ok(())
    }

    /// The same journal, opened for reading.
    #[cfg(test)]
    pub(crate) fn into_history(self) -> history::History {
        history::History { connection: self.connection }
    }

    /// The last record that is on disk.
    #[must_use]
    pub fn head(&self) -> JournalHead {
        self.chain.head()
    }

    /// Whether this is or was the journal's last record.
    ///
    /// # Errors
    /// When SQLite cannot read it.
    pub fn contains(&self, head: &JournalHead) -> Result<bool, Error> {
        Ok(chain::contains(&self.connection, head)?)
    }

    /// Reads the run's state as an earlier coordinator left it.
    ///
    /// # Errors
    /// When SQLite cannot read it.
    pub fn restore(&self) -> Result<RestoredRun, Error> {
        let connection = &self.connection;
        let run_id = run_id(connection)?;
        let query = "SELECT CASE kind WHEN ?1 THEN detail_json ->> 'reason' END FROM events WHERE kind IN (?1, ?2)
            ORDER BY rowid DESC LIMIT 1";
        let kinds = [EventKind::Paused, EventKind::Resumed].map(EventKind::name);
        let paused = connection.query_row(query, kinds, |row| row.get(0)).optional()?.flatten();
        let query = "SELECT number, stage, step FROM generations ORDER BY number DESC LIMIT 1";
        let last = connection.query_row(query, [], |row| Ok((unsigned(row, 0)?, place(row, 1)?))).optional()?;
        let Some((last_generation, start)) = last else {
            return Ok(RestoredRun { run_id, paused, ..RestoredRun::default() });
        };

        let mut terms = TermLog::default();
        let mut formed = connection.prepare("SELECT number, term FROM generations ORDER BY number")?;
        for generation in formed.query_map([], |row| Ok((unsigned(row, 0)?, row.get::<_, i64>(1)?)))? {
            let (number, term) = generation?;
            terms.record(number, term.cast_unsigned());
        }
        let mut cuts = BranchPoints::default();
        let mut starts = connection.prepare("SELECT generation + 1, stage, step FROM cuts ORDER BY generation")?;
        for start in starts.query_map([], |row| Ok((unsigned(row, 0)?, place(row, 1)?)))? {
            let (generation, start) = start?;
            cuts.cut(generation, start);
        }
        let query = "SELECT stage, step FROM steps WHERE generation = ? ORDER BY stage DESC, step DESC LIMIT 1";
        let number = last_generation.cast_signed();
        let stepped = connection.query_row(query, [number], |row| place(row, 0)).optional()?;
        let query = "SELECT stage, step FROM cuts WHERE generation >= ? ORDER BY stage, step LIMIT 1";
        let cut = connection.query_row(query, [number], |row| place(row, 0)).optional()?;
        let reached = stepped.unwrap_or_default().max(start);
        let committed = cut.map_or(reached, |cut| cut.min(reached));

        let query = format!(
            "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints AS own
            WHERE deleted IS NULL AND {PRESENT} ORDER BY stage, step"
        );
        let checkpoints = connection.prepare(&query)?.query_map([], checkpoint)?.collect::<Result<Vec<_>, _>>()?;
        let query = format!(
            "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL AND {PASSED_OVER} ORDER BY stage"
        );
        let passed_over = connection.prepare(&query)?.query_map([], checkpoint)?.collect::<Result<Vec<_>, _>>()?;
        let saved = connection
            .prepare(&format!("SELECT stage, step FROM checkpoints AS own WHERE {PRESENT}"))?
            .query_map([], |row| Ok((place(row, 0)?, Boundary::Checkpoint)))?
            .collect::<Result<Boundaries, _>>()?;
        let query =
            format!("SELECT stage, step, metrics_json FROM evaluations AS own WHERE {PRESENT} ORDER BY generation");
        let scores = connection
            .prepare(&query)?
            .query_map([], |row| Ok((place(row, 0)?, metrics(&row.get::<_, String>(2)?))))?
            .collect::<Result<Scores, _>>()?;
        let evaluated = scores.keys().map(|place| (*place, Boundary::Evaluation)).collect();
        let query = "SELECT detail_json ->> 'stage', detail_json ->> 'step' FROM events WHERE kind = ? ORDER BY rowid";
        let ends = connection
            .prepare(query)?
            .query_map([EventKind::StageEnded.name()], |row| Ok((row.get(0)?, unsigned(row, 1)?)))?
            .collect::<Result<StageEnds, _>>()?;
        let query = "SELECT detail_json FROM events WHERE kind = ? ORDER BY rowid DESC LIMIT 1";
        let latest =
            |what: EventKind| connection.query_row(query, [what.name()], |row| row.get::<_, String>(0)).optional();
        Ok(RestoredRun {
            run_id,
            terms,
            last_generation,
            cuts,
            committed,
            checkpoints,
            passed_over,
            unfinished: BTreeSet::new(),
            done: &saved | &evaluated,
            scores,
            measured: self.measured(committed)?,
            ends,
            paused,
            data_set: latest(EventKind::Joined)?.and_then(|detail| data_set(&detail)),
            exchanges: exchanges(connection)?,
            finished: latest(EventKind::Finished)?.is_some(),
        })
    }

    /// The metrics of the current stage's guard rules in its last steps up to `committed`, as many
    /// as the rules need. A rule that was broken in more steps in a row has fired before.
    fn measured(&self, committed: Place) -> Result<Vec<(Place, StepMeans)>, Error> {
        let file = run_file(&self.connection)?;
        let rules = file.stages.get(committed.stage as usize).map_or(&[][..], |stage| &stage.guard);
        let Some(longest) = rules.iter().map(|rule| rule.for_).max() else { return Ok(Vec::new()) };
        let query = format!(
            "SELECT stage, step, summaries_json FROM steps AS own WHERE stage = ? AND step <= ? AND {PRESENT}
            ORDER BY step DESC, generation DESC LIMIT ?"
        );
        let row = params![committed.stage, committed.step.cast_signed(), i64::from(longest) + 1];
        let mut measured = self
            .connection
            .prepare(&query)?
            .query_map(row, |row| Ok((place(row, 0)?, means(&row.get::<_, String>(2)?))))?
            .collect::<Result<Vec<_>, _>>()?;
        measured.reverse();
        Ok(measured)
    }
}

/// The journal's file in its folder.
const FILE: &str = "journal.sqlite";

/// Locks the folder `state` for this coordinator, until the returned file is closed.
fn lock(state: &Path) -> Result<std::fs::File, Error> {
    let failed = |path: &Path, source| Error::Open { path: path.to_owned(), source };
    std::fs::create_dir_all(state).map_err(|source| failed(state, source))?;
    let path = state.join("lock");
    let lock = std::fs::File::create(&path).map_err(|source| failed(&path, source))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(Error::InUse),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(&path, source)),
    }
}

/// Checks a journal before anything is written to it: its pages, and every record. Does not check
/// one of another version.
fn check(connection: &Connection) -> Result<(), Error> {
    let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version != VERSION {
        return Ok(());
    }
    let ChainCheck { problems, count, .. } = verify(connection)?;
    match problems.first() {
        None => Ok(()),
        Some(first) if count == 1 => Err(Error::Damaged(first.clone())),
        Some(first) => Err(Error::Damaged(format!("{first}; and {} more", count - 1))),
    }
}

/// Checks pages, tables and chain.
fn verify(connection: &Connection) -> Result<ChainCheck, Error> {
    let pages: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if pages != "ok" {
        return Err(Error::Damaged(pages));
    }
    let mut verdict = chain::verify(connection)?;
    if schema(connection)? != expected_schema()? {
        verdict.add("its tables and views are not those that were made".to_owned());
    }
    Ok(verdict)
}

fn expected_schema() -> rusqlite::Result<Vec<(String, String)>> {
    let fresh = Connection::open_in_memory()?;
    fresh.execute_batch(SCHEMA)?;
    fresh.execute_batch(chain::SCHEMA)?;
    schema(&fresh)
}

/// The names and definitions of tables, views and indices, without those of SQLite itself.
fn schema(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    let query = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY name";
    connection.prepare(query)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// The run's id.
fn run_id(connection: &Connection) -> Result<String, Error> {
    Ok(connection.query_row("SELECT id FROM run ORDER BY number DESC LIMIT 1", [], |row| row.get(0))?)
}

/// The run file in force.
fn run_file(connection: &Connection) -> Result<RunFile, Error> {
    let query = "SELECT run_file_json FROM run ORDER BY number DESC LIMIT 1";
    let text: String = connection.query_row(query, [], |row| row.get(0))?;
    serde_json::from_str(&text).map_err(|error| Error::RunFile(error.to_string()))
}

/// SQL: whether the row `own` belongs to the present history.
const PRESENT: &str = "NOT EXISTS (SELECT 1 FROM cuts
    WHERE cuts.generation >= own.generation AND (cuts.stage, cuts.step) < (own.stage, own.step))";

/// SQL: whether the row `own`, which is not [`PRESENT`], was trained, but its stage ended with an
/// earlier state, the best one. As [`Lineage::fate`](crate::run::lineage::Lineage::fate).
const NOT_SELECTED: &str = "EXISTS (SELECT 1 FROM events AS ended WHERE ended.kind = 'stage_ended'
    AND ended.detail_json ->> 'cause' IN ('best_state', 'early_stopping')
    AND ended.detail_json ->> 'stage' = own.stage AND ended.detail_json ->> 'step' < own.step
    AND ended.detail_json ->> 'generation' >= own.generation
    AND NOT EXISTS (SELECT 1 FROM cuts WHERE cuts.generation >= own.generation
        AND cuts.generation < ended.detail_json ->> 'generation' AND (cuts.stage, cuts.step) < (own.stage, own.step)))";

/// SQL: whether the checkpoint `own` is the last of those beyond the state that its stage ended
/// with. That one is kept.
const PASSED_OVER: &str = "(stage, step) IN (SELECT stage, max(step) FROM checkpoints AS other
    WHERE deleted IS NULL AND EXISTS (SELECT 1 FROM events AS ended WHERE ended.kind = 'stage_ended'
        AND ended.detail_json ->> 'stage' = other.stage AND ended.detail_json ->> 'step' < other.step) GROUP BY stage)";

/// SQL: whether the row `own` belongs in curves and reports: it is [`PRESENT`] or [`NOT_SELECTED`].
fn is_shown() -> String {
    format!("({PRESENT} OR {NOT_SELECTED})")
}

fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index).map(i64::cast_unsigned)
}

fn place(row: &Row<'_>, first: usize) -> rusqlite::Result<Place> {
    Ok(Place { stage: row.get(first)?, step: unsigned(row, first + 1)? })
}

fn checkpoint(row: &Row<'_>) -> rusqlite::Result<Checkpoint> {
    Ok(Checkpoint {
        place: place(row, 0)?,
        generation: unsigned(row, 2)?,
        run_id: row.get(3)?,
        name: row.get(4)?,
        parameters_sha256: row.get(5)?,
    })
}

/// Scores by name, without those that are not finite.
fn metrics(json: &str) -> BTreeMap<String, f64> {
    let metrics: BTreeMap<String, Option<f64>> = serde_json::from_str(json).unwrap_or_default();
    metrics.into_iter().filter_map(|(name, score)| Some((name, score?))).collect()
}

/// The means of a step's distributions, by name.
fn means(json: &str) -> StepMeans {
    let summaries: BTreeMap<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    summaries.into_iter().filter_map(|(name, summary)| Some((name, summary["mean"].as_f64()?))).collect()
}

/// The changes of training data, in order, with the points at which they took effect.
fn exchanges(connection: &Connection) -> Result<Vec<DataChange>, Error> {
    let query = "SELECT detail_json FROM events WHERE kind = ? ORDER BY rowid";
    let mut events = connection.prepare(query)?;
    let details = events.query_map([EventKind::DataChanged.name()], |row| row.get::<_, String>(0))?;
    let starts = "SELECT stage, step FROM generations WHERE number >= ? ORDER BY stage, step LIMIT 1";
    let mut exchanges = Vec::new();
    for detail in details {
        let detail: serde_json::Value = serde_json::from_str(&detail?).unwrap_or_default();
        let Some(exchange) = DataChange::from_detail(&detail) else { continue };
        let from = connection.query_row(starts, [exchange.generation.cast_signed()], |row| place(row, 0)).optional()?;
        exchanges.push(DataChange { from, ..exchange });
    }
    Ok(exchanges)
}

fn data_set(detail: &str) -> Option<v1::DataSet> {
    let detail: serde_json::Value = serde_json::from_str(detail).ok()?;
    let number = |key: &str| detail.get(key)?.as_u64();
    let text = |key: &str| Some(detail.get(key)?.as_str()?.to_owned());
    Some(v1::DataSet {
        train_images: number("train_images")?,
        train_captions: number("train_captions")?,
        skipped_images: number("skipped_images")?,
        // Earlier versions hashed several of these together; those cannot be compared.
        training_fingerprint: text("training_fingerprint")?,
        validation_fingerprint: text("validation_fingerprint")?,
        models_fingerprint: text("models_fingerprint")?,
        validation_images: number("validation_images")?,
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Records that a run file comes into force.
fn write_run_file(to: &Transaction<'_>, chain: &mut ChainWriter, file: &RunFile, id: &str) -> rusqlite::Result<()> {
    let text = serde_json::to_string(file).expect("a run file is plain data");
    // SQLite's integers are signed; the seed keeps its bits, and the JSON has its value.
    let row = params![file.name, file.seed.cast_signed(), text, now(), id];
    to.execute("INSERT INTO run (name, seed, run_file_json, created, id) VALUES (?, ?, ?, ?, ?)", row)?;
    chain.append(to, Entry::of_row(Kind::RunFile, to.last_insert_rowid()))
}

fn write(to: &Transaction<'_>, chain: &mut ChainWriter, record: &Record) -> rusqlite::Result<()> {
    let run = |sql: &str, row: &[&dyn rusqlite::ToSql]| to.prepare_cached(sql)?.execute(row).map(|_| ());
    match record {
        Record::Formed { generation, term, members, cause, start, source } => {
            let member = |(rank, machine): &(u32, crate::run::membership::Machine)| json!({ "rank": rank, "host": machine.host, "version": machine.version, "device": machine.device });
            let members = serde_json::Value::from_iter(members.iter().map(member)).to_string();
            let sql = "INSERT INTO generations (number, members_json, cause, formed_at, source, stage, step, term)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
            let (number, step) = (generation.cast_signed(), start.step.cast_signed());
            let source = source.to_string();
            run(sql, params![number, members, cause, now(), source, start.stage, step, term.cast_signed()])?;
            chain.append(to, Entry::of_generation(Kind::Formed, *generation))
        }
        Record::Ready { generation, .. } => {
            run("UPDATE generations SET ready_at = ? WHERE number = ?", params![now(), generation.cast_signed()])?;
            chain.append(to, Entry::of_generation(Kind::Ready, *generation))
        }
        Record::Ended { generation, reason } => {
            let sql = "UPDATE generations SET ended_at = ?, ended_because = ? WHERE number = ?";
            run(sql, params![now(), reason, generation.cast_signed()])?;
            chain.append(to, Entry::of_generation(Kind::Ended, *generation))
        }
        Record::Step(step) => {
            write_step(to, step)?;
            chain.append(to, Entry::at(Kind::Step, keys(step.place, step.generation)))
        }
        Record::Saved(checkpoint) => {
            let Checkpoint { place, generation, run_id, name, parameters_sha256 } = checkpoint;
            // A checkpoint of the same name was overwritten.
            write_deleted(to, chain, name)?;
            let (stage, step, generation) = keys(*place, *generation);
            let sql = "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, NULL)";
            run(sql, params![stage, step, generation, run_id, name, parameters_sha256, now()])?;
            chain.append(to, Entry::at(Kind::Saved, (stage, step, generation)))
        }
        Record::Deleted(name) | Record::Damaged(name) => write_deleted(to, chain, name),
        Record::Evaluated { place, generation, metrics, items } => {
            let (stage, step, generation) = keys(*place, *generation);
            let sql = "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?)";
            run(sql, params![stage, step, generation, json!(metrics).to_string(), now()])?;
            let sql = "INSERT INTO evaluation_items VALUES (?, ?, ?, ?, ?, ?, ?)";
            for item in items {
                let (references, scores) = (json!(item.references).to_string(), json!(item.scores).to_string());
                run(sql, params![stage, step, generation, item.image, item.caption, references, scores])?;
            }
            chain.append(to, Entry::at(Kind::Evaluated, (stage, step, generation)))
        }
        Record::Guard { place, firing } => {
            let TriggeredRule { metric, value, bound, action, .. } = firing;
            let (Place { stage, step }, action) = (*place, action.name());
            let detail = json!({ "stage": stage, "step": step, "metric": metric, "value": value, "bound": bound, "action": action });
            write_event(to, chain, "guard", &detail)
        }
        Record::Event { what, detail } => write_event(to, chain, what.name(), detail),
    }
}

fn keys(place: Place, generation: u64) -> (u32, i64, i64) {
    (place.stage, place.step.cast_signed(), generation.cast_signed())
}

fn write_event(
    to: &Transaction<'_>,
    chain: &mut ChainWriter,
    kind: &str,
    detail: &serde_json::Value,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO events (at, kind, detail_json) VALUES (?, ?, ?)";
    to.prepare_cached(sql)?.execute(params![now(), kind, detail.to_string()])?;
    chain.append(to, Entry::of_row(Kind::Event, to.last_insert_rowid()))
}

/// Records that the checkpoint of this name, if there is one, is deleted.
fn write_deleted(to: &Transaction<'_>, chain: &mut ChainWriter, name: &str) -> rusqlite::Result<()> {
    let sql = "UPDATE checkpoints SET deleted = ? WHERE name = ? AND deleted IS NULL RETURNING stage, step, generation";
    let keys = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let deleted: Vec<_> =
        to.prepare_cached(sql)?.query_map(params![now(), name], keys)?.collect::<rusqlite::Result<_>>()?;
    deleted.into_iter().try_for_each(|keys| chain.append(to, Entry::at(Kind::Deleted, keys)))
}

fn write_step(to: &Transaction<'_>, step: &StepStatistics) -> rusqlite::Result<()> {
    let summaries: BTreeMap<_, _> = step.summaries.iter().map(|(name, summary)| (*name, summarise(summary))).collect();
    let lag = step.pace.lag();
    let row = params![
        step.place.stage,
        step.place.step.cast_signed(),
        step.generation.cast_signed(),
        step.loss(),
        step.learning_rate,
        step.gradient_norm,
        step.seconds,
        step.all_reduce_seconds,
        step.samples.cast_signed(),
        json!(summaries).to_string(),
        now(),
        lag.map(|(rank, _)| rank),
        lag.map(|(_, seconds)| seconds),
    ];
    to.prepare_cached("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?.execute(row)?;
    Ok(())
}

fn summarise(summary: &Summary) -> serde_json::Value {
    let v1::Summary { count, mean, min, max, .. } = summary.into();
    let q = |q: f64| summary.quantile(q);
    json!({
        "count": count, "mean": mean, "min": min, "max": max,
        "p05": q(0.05), "p25": q(0.25), "p50": q(0.5), "p75": q(0.75), "p95": q(0.95),
    })
}

#[cfg(test)]
mod tests {
    use config::{GuardAction, Rule};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        journal::history::History,
        run::{Run, data::Size, lineage::StateFate, membership::Machine, record::Source, testing},
    };

    const TERM: u64 = 0xF000_0000_0000_0007;

    fn file() -> RunFile {
        testing::run_file(vec![testing::stage("a", 20, 4, Some(5), Some(5))])
    }

    fn formed(generation: u64, step: u64, source: Source) -> Record {
        let members = vec![(3, Machine { host: "here".into(), ..Machine::default() })];
        Record::Formed {
            generation,
            term: TERM,
            members,
            cause: "start".into(),
            start: Place { stage: 0, step },
            source,
        }
    }

    fn step(step: u64, generation: u64) -> Record {
        let position = v1::Position { stage: 0, step, generation };
        let report = v1::StepDone {
            loss_sum: f64::NAN,
            loss_weight: 1.0,
            summaries: [("kl".into(), (&Summary::of([0.5, 1.5])).into())].into(),
            ..Default::default()
        };
        Record::Step(StepStatistics::read(3, &report, &position).unwrap())
    }

    fn saved(step: u64, generation: u64) -> Checkpoint {
        let name = format!("0-a-{step:08}");
        let (run_id, parameters_sha256) = ("3fa2".into(), "ab".into());
        Checkpoint { place: Place { stage: 0, step }, generation, run_id, name, parameters_sha256 }
    }

    fn cuts<const N: usize>(starts: [(u64, u64); N]) -> BranchPoints {
        let mut cuts = BranchPoints::default();
        starts.into_iter().for_each(|(generation, step)| cuts.cut(generation, Place { stage: 0, step }));
        cuts
    }

    fn evaluated(step: u64, generation: u64) -> Record {
        let metrics = [("cider".to_owned(), 1.0)].into();
        Record::Evaluated { place: Place { stage: 0, step }, generation, metrics, items: vec![] }
    }

    #[test]
    fn a_guard_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = file();
        let rule = |above: f64, for_: u32| Rule {
            metric: "kl".into(),
            above: Some(above),
            below: None,
            for_,
            action: GuardAction::Pause,
        };
        file.stages[0].guard = vec![rule(0.5, 2), rule(0.9, 1)];
        let mut journal = Journal::open(folder.path(), &file).unwrap();
        let mut records = vec![formed(1, 0, Source::Seed)];
        // The means are 1.
        records.extend((1..=6).map(|s| step(s, 1)));
        records.extend([formed(2, 5, Source::Member(3)), step(6, 2), step(7, 2)]);
        journal.write(&records).unwrap();
        let measured = journal.restore().unwrap().measured;
        let steps: Vec<u64> = measured.iter().map(|(place, _)| place.step).collect();
        assert_eq!(steps, [5, 6, 7]);
        assert!(measured.iter().all(|(_, means)| means["kl"] == 1.0), "{measured:?}");

        // A rule that has fired fires again only after the metric was within the bound.
        let mut run = Run::new(file, journal.restore().unwrap(), TERM);
        let mut fired = |step: u64, kl: f64| {
            run.on_measured(Place { stage: 0, step }, "kl", kl)
                .into_iter()
                .map(|firing| firing.bound)
                .collect::<Vec<_>>()
        };
        assert_eq!(fired(8, 1.0), [0.0; 0]);
        assert_eq!(fired(9, 0.7), [0.0; 0]);
        assert_eq!(fired(10, 1.0), [0.9]);
        assert_eq!(fired(11, 0.4), [0.0; 0]);
        assert_eq!(fired(12, 1.0), [0.9]);
        assert_eq!(fired(13, 1.0), [0.5]);
    }

    #[test]
    fn exchanged_data_count_from_the_earliest_start_since_then() {
        let folder = tempfile::tempdir().unwrap();
        let before = Size { images: 9, captions: 45 };
        let exchange = |generation, from: Option<u64>| DataChange {
            generation,
            from: from.map(|step| Place { stage: 0, step }),
            before,
        };
        let exchanged = |generation| Record::Event {
            what: EventKind::DataChanged,
            detail: exchange(generation, None).detail(Size { images: 8, captions: 40 }),
        };
        let validation = Record::Event {
            what: EventKind::DataChanged,
            detail: json!({ "split": "validation", "images_before_and_after": [1, 2] }),
        };
        let mut journal = Journal::open(folder.path(), &file()).unwrap();
        journal.write(&[formed(1, 0, Source::Seed), exchanged(2), validation]).unwrap();
        assert_eq!(journal.restore().unwrap().exchanges, [exchange(2, None)]);
        let member = || Source::Member(3);
        journal
            .write(&[formed(2, 10, member()), formed(3, 5, member()), exchanged(4), formed(4, 7, member())])
            .unwrap();
        assert_eq!(journal.restore().unwrap().exchanges, [exchange(2, Some(5)), exchange(4, Some(7))]);
    }

    #[test]
    fn a_restarted_coordinator_knows_where_the_run_stands() {
        let folder = tempfile::tempdir().unwrap();
        let detail = json!({
            "train_images": 2, "train_captions": 10, "skipped_images": 0, "validation_images": 7, "training_fingerprint": "t", "validation_fingerprint": "v", "models_fingerprint": "m",
        });
        let mut records = vec![
            Record::Event { what: EventKind::Joined, detail },
            formed(1, 0, Source::Seed),
            Record::Ready { generation: 1, recovery: false },
        ];
        records.extend((1..=5).map(|s| step(s, 1)));
        records.extend([Record::Saved(saved(5, 1)), evaluated(5, 1)]);
        records.extend((6..=10).map(|s| step(s, 1)));
        records.extend([Record::Saved(saved(10, 1)), Record::Deleted(saved(5, 1).name), evaluated(10, 1)]);
        records.extend((11..=15).map(|s| step(s, 1)));
        records.push(evaluated(15, 1));
        records.push(Record::Ended { generation: 1, reason: "lost".into() });
        // All states beyond the checkpoint are lost, and with them the evaluation at step 15.
        records.extend([formed(2, 10, Source::Checkpoint(saved(10, 1).name)), step(11, 2)]);
        records.extend([formed(3, 11, Source::Member(3)), step(12, 3)]);
        let mut journal = Journal::open(folder.path(), &file()).unwrap();
        journal.write(&records).unwrap();
        drop(journal);

        let at = |step| Place { stage: 0, step };
        let mut terms = TermLog::default();
        (1..=3).for_each(|generation| terms.record(generation, TERM));
        let expected = RestoredRun {
            terms,
            last_generation: 3,
            cuts: cuts([(1, 0), (2, 10), (3, 11)]),
            committed: at(12),
            checkpoints: vec![saved(10, 1)],
            done: [5, 10]
                .into_iter()
                .flat_map(|s| [(at(s), Boundary::Checkpoint), (at(s), Boundary::Evaluation)])
                .collect(),
            data_set: Some(v1::DataSet {
                train_images: 2,
                train_captions: 10,
                skipped_images: 0,
                training_fingerprint: "t".into(),
                validation_fingerprint: "v".into(),
                models_fingerprint: "m".into(),
                validation_images: 7,
            }),
            finished: false,
            scores: [5, 10].map(|step| (at(step), [("cider".to_owned(), 1.0)].into())).into(),
            ..RestoredRun::default()
        };
        let journal = Journal::open(folder.path(), &file()).unwrap();
        let restored = journal.restore().unwrap();
        assert_eq!(restored, RestoredRun { run_id: restored.run_id.clone(), ..expected });
        let summaries: String = journal
            .connection
            .query_row("SELECT summaries_json FROM steps WHERE step = 12 AND loss IS NULL", [], |row| row.get(0))
            .unwrap();
        let summaries: serde_json::Value = serde_json::from_str(&summaries).unwrap();
        assert_eq!((&summaries["kl"]["min"], &summaries["kl"]["mean"]), (&json!(0.5), &json!(1.0)));
    }

    #[test]
    fn a_restarted_coordinator_knows_what_was_decided() {
        let event = |what, detail| Record::Event { what, detail };
        let mut journal = Journal::new(Connection::open_in_memory().unwrap(), &file()).unwrap();
        let mut records = vec![formed(1, 0, Source::Seed)];
        records.extend((1..=15).map(|s| step(s, 1)));
        records.extend([5, 10, 15].into_iter().flat_map(|s| [Record::Saved(saved(s, 1)), evaluated(s, 1)]));
        records.push(event(EventKind::Paused, json!({ "reason": "kl is 9" })));
        journal.write(&records).unwrap();
        let restored = journal.restore().unwrap();
        assert_eq!((restored.paused.as_deref(), restored.cuts), (Some("kl is 9"), cuts([(1, 0)])));
        assert_eq!((restored.committed, restored.scores.len()), (Place { stage: 0, step: 15 }, 3));

        // The coordinator died when only the decision was on disk.
        let ended = json!({ "stage": 0, "step": 10, "generation": 1, "cause": "early_stopping", "reason": "patience" });
        let decided = [event(EventKind::Resumed, json!({})), event(EventKind::StageEnded, ended), step(16, 1)];
        journal.write(&decided).unwrap();
        let restored = journal.restore().unwrap();
        let at = |step| Place { stage: 0, step };
        assert_eq!((restored.paused, restored.ends), (None, [(0, 10)].into()));
        assert_eq!((restored.committed, restored.cuts), (at(10), cuts([(1, 0), (2, 10)])));
        assert_eq!(restored.checkpoints, [saved(5, 1), saved(10, 1)]);
        assert_eq!(restored.passed_over, [saved(15, 1)], "kept for the user");
        assert_eq!(restored.scores.into_keys().collect::<Vec<_>>(), [at(5), at(10)]);
        // Later states belong to the present history again.
        journal.write(&[formed(2, 10, Source::Checkpoint(saved(10, 1).name)), Record::Saved(saved(11, 2))]).unwrap();
        assert_eq!(journal.restore().unwrap().checkpoints.last(), Some(&saved(11, 2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Generations of a stage begin at a point that an earlier one has reached, or before it;
        /// then the stage may end, and generations continue in the next stage. SQL and lineage
        /// agree on each row.
        #[test]
        fn sql_and_lineage_agree_on_what_became_of_a_state(
            first in prop::collection::vec((0..9_u64, 0..5_u64), 1..5), end in prop::option::of((0..9_u64, 0..3_usize)),
            then in prop::collection::vec((prop::option::of(0..4_u64), 0..5_u64), 0..4),
        ) {
            let stages = vec![testing::stage("a", 20, 4, None, None), testing::stage("b", 20, 4, None, None)];
            let mut journal = Journal::new(Connection::open_in_memory().unwrap(), &testing::run_file(stages)).unwrap();
            let (mut generation, mut reached) = (0, Place::default());
            let mut train = |journal: &mut Journal, start: Place, steps: u64| {
                generation += 1;
                let (members, cause) = (vec![], "x".into());
                let formed = Record::Formed { generation, term: TERM, members, cause, start, source: Source::Seed };
                let stepped = (1..=steps).map(|more| {
                    let position = start.after(more).in_generation(generation);
                    Record::Step(StepStatistics::read(0, &v1::StepDone::default(), &position).unwrap())
                });
                journal.write(&[formed].into_iter().chain(stepped).collect::<Vec<_>>()).unwrap();
                generation
            };
            let mut last = 0;
            for (back, steps) in first {
                let start = Place { stage: 0, step: reached.step.saturating_sub(back) };
                last = train(&mut journal, start, steps);
                reached = start.after(steps);
            }
            if let Some((back, cause)) = end {
                let end = reached.step.saturating_sub(back);
                let cause = ["best_state", "early_stopping", "guard"][cause];
                let detail = json!({ "stage": 0, "step": end, "generation": last, "cause": cause, "reason": "x" });
                journal.write(&[Record::Event { what: EventKind::StageEnded, detail }]).unwrap();
                for (start, steps) in then {
                    let place = |step| Place { stage: 1, step };
                    // Or at the end of the previous stage, whose state the next one begins with.
                    train(&mut journal, start.map_or(Place { stage: 0, step: end }, place), start.map_or(0, |_| steps));
                }
            }
            let history = History { connection: journal.connection };
            let query = format!("SELECT {PRESENT}, {NOT_SELECTED} FROM steps AS own ORDER BY stage, step, generation");
            let fates = history.all(&query, |row| Ok(match (row.get(0)?, row.get(1)?) {
                (true, _) => StateFate::Current,
                (false, true) => StateFate::NotSelected,
                (false, false) => StateFate::GivenUp,
            }));
            for (step, fate) in history.steps().unwrap().into_iter().zip(fates.unwrap()) {
                prop_assert_eq!(step.fate, fate, "{:?}", step);
                prop_assert!(step.fate != StateFate::NotSelected || end.is_some_and(|(_, cause)| cause < 2));
            }
        }
    }

    #[test]
    fn a_run_can_be_paused_before_anybody_comes() {
        let mut journal = Journal::new(Connection::open_in_memory().unwrap(), &file()).unwrap();
        let event = |what, detail| Record::Event { what, detail };
        journal.write(&[event(EventKind::Paused, json!({ "reason": "somebody" }))]).unwrap();
        assert_eq!(journal.restore().unwrap().paused.as_deref(), Some("somebody"));
        journal.write(&[event(EventKind::Resumed, json!({}))]).unwrap();
        let restored = journal.restore().unwrap();
        assert_eq!(restored, RestoredRun { run_id: restored.run_id.clone(), ..RestoredRun::default() });
    }

    #[test]
    fn restored_scores_are_those_that_were_recorded_to_the_last_bit() {
        let mut journal = Journal::new(Connection::open_in_memory().unwrap(), &file()).unwrap();
        // A parser that is not exact gets many of a thousand roots wrong.
        let score = |step: u64| [("cider".to_owned(), (step as f64).sqrt() / 7.0)].into();
        let scores: Scores = (1..=1_000).map(|step| (Place { stage: 0, step }, score(step))).collect();
        let evaluated = |(place, metrics): (&Place, &BTreeMap<String, f64>)| Record::Evaluated {
            place: *place,
            generation: 1,
            metrics: metrics.clone(),
            items: vec![],
        };
        let mut records = vec![formed(1, 0, Source::Seed)];
        records.extend(scores.iter().map(evaluated));
        journal.write(&records).unwrap();
        let restored = journal.restore().unwrap().scores;
        let differing = scores.iter().filter(|(place, score)| restored.get(place) != Some(score)).count();
        assert_eq!(differing, 0);
    }

    #[test]
    fn the_guard_is_on_record() {
        let mut journal = Journal::new(Connection::open_in_memory().unwrap(), &file()).unwrap();
        let rule = config::Rule {
            metric: "kl".into(),
            above: Some(1.0),
            below: None,
            for_: 1,
            action: config::GuardAction::Warn,
        };
        let place = Place { stage: 0, step: 3 };
        let firings = crate::run::guard::Guard::new(0, &[rule]).step(place, |_| Some(2.5));
        let records: Vec<_> = firings.into_iter().map(|firing| Record::Guard { place, firing }).collect();
        journal.write(&records).unwrap();
        let query = "SELECT detail_json FROM events WHERE kind = 'guard'";
        let detail: String = journal.connection.query_row(query, [], |row| row.get(0)).unwrap();
        let expected = json!({ "stage": 0, "step": 3, "metric": "kl", "value": 2.5, "bound": 1.0, "action": "warn" });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&detail).unwrap(), expected);
    }

    #[test]
    fn a_journal_belongs_to_one_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), &file()).unwrap();
        assert!(matches!(Journal::open(folder.path(), &file()), Err(Error::InUse)));
        drop(journal);
    }
}
