//! The tables of the journal and their version.

/// The name of the database file in the journal's folder.
pub(super) const FILE_NAME: &str = "journal.sqlite";
/// The version of the tables. A journal with another version is refused, unless it is one of
/// [`MIGRATED_VERSIONS`].
pub(super) const SCHEMA_VERSION: i64 = 7;
/// The versions that are migrated to the present one.
pub(super) const MIGRATED_VERSIONS: [i64; 2] = [3, 6];

/// Creates the tables that journals of version 6 have, too, except `chain`. The documentation of
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
";

/// Creates the tables of records on which a restart or the audit depends, and the view `cuts`. A
/// journal of version 6 has these records only as events. Fails if a table exists already.
pub(super) const SCHEMA_SINCE_7: &str = "
CREATE TABLE attachments (
    number INTEGER PRIMARY KEY, rank INTEGER NOT NULL, host TEXT NOT NULL, train_images INTEGER NOT NULL,
    train_captions INTEGER NOT NULL, skipped_images INTEGER NOT NULL, validation_images INTEGER NOT NULL,
    training_fingerprint TEXT NOT NULL, validation_fingerprint TEXT NOT NULL, models_fingerprint TEXT NOT NULL,
    holds TEXT, at REAL NOT NULL);
CREATE TABLE data_changes (
    number INTEGER PRIMARY KEY, generation INTEGER NOT NULL, images_before INTEGER NOT NULL, images_after INTEGER NOT NULL,
    captions_before INTEGER NOT NULL, captions_after INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE stage_ends (
    number INTEGER PRIMARY KEY, stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL,
    cause TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE pauses (
    number INTEGER PRIMARY KEY, is_paused INTEGER NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL,
    reason TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE history_moves (
    number INTEGER PRIMARY KEY, generation INTEGER NOT NULL, from_stage INTEGER NOT NULL, from_step INTEGER NOT NULL,
    to_stage INTEGER NOT NULL, to_step INTEGER NOT NULL, source TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE run_ends (
    number INTEGER PRIMARY KEY, outcome TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL,
    reason TEXT NOT NULL, result TEXT, at REAL NOT NULL);
CREATE TABLE guard_firings (
    number INTEGER PRIMARY KEY, stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL,
    metric TEXT NOT NULL, value REAL, bound REAL NOT NULL, is_above INTEGER NOT NULL, action TEXT NOT NULL,
    first_stage INTEGER NOT NULL, first_step INTEGER NOT NULL, at REAL NOT NULL);
CREATE TABLE settings_changes (
    number INTEGER PRIMARY KEY, stage INTEGER NOT NULL, step INTEGER NOT NULL, changes_json TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE recoveries (
    number INTEGER PRIMARY KEY, stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL,
    checkpoint TEXT NOT NULL, run_ids_json TEXT NOT NULL, at REAL NOT NULL);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT generation, stage, step FROM stage_ends;
";
