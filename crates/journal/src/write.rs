//! Writes records to the tables and to the hash chain.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use config::RunFile;
use dico_engine::{
    WorkerId,
    checkpoint::Checkpoint,
    data::{DataChange, SplitSize},
    guard::TriggeredRule,
    membership::Machine,
    model_selection::EndDecision,
    plan::Position,
    record::{Attachment, HistoryMove, Record},
    statistics::StepStatistics,
};
use proto::v1;
use rusqlite::{Row, ToSql, Transaction, params};
use serde_json::json;
use summary_statistics::Summary;

use super::{
    chain::{ChainEntry, ChainWriter, RecordKind},
    evaluated_caption::EvaluatedCaption,
};

/// The kind of the event of a guard rule that has fired. It has no [`EventKind`], because the
/// record is no [`Record::Event`].
///
/// [`EventKind`]: dico_engine::EventKind
pub const GUARD_KIND: &str = "guard";

/// The present time in Unix seconds.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Records that a run file takes effect.
pub(super) fn write_run_file(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    file: &RunFile,
    id: &str,
) -> rusqlite::Result<()> {
    let text = serde_json::to_string(file).expect("a run file is plain data");
    // SQLite's integers are signed: the column has the bits of the seed, and the JSON its value.
    let row = params![file.name, file.seed.cast_signed(), text, now(), id];
    transaction.execute("INSERT INTO run (name, seed, run_file_json, created, id) VALUES (?, ?, ?, ?, ?)", row)?;
    chain.append(transaction, ChainEntry::of_row(RecordKind::RunFile, transaction.last_insert_rowid()))
}

/// Writes a record with its entry of the hash chain, and the event for people that it adds to the
/// event log. `captions` are the captions of evaluations, by the number of the evaluation.
pub(super) fn write_record(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    record: &Record,
    captions: &BTreeMap<u64, Vec<EvaluatedCaption>>,
) -> rusqlite::Result<()> {
    let execute = |sql: &str, row: &[&dyn rusqlite::ToSql]| transaction.prepare_cached(sql)?.execute(row).map(|_| ());
    match record {
        Record::Formed { generation, term, members, cause, start, source } => {
            let member = |(worker_id, machine): &(WorkerId, Machine)| json!({ "rank": worker_id, "host": machine.host, "version": machine.version, "device": machine.device });
            let members = serde_json::Value::from_iter(members.iter().map(member)).to_string();
            let sql = "INSERT INTO generations (number, members_json, cause, formed_at, source, stage, step, term)
                VALUES (?, ?, ?, ?, ?, ?, ?, ?)";
            let (number, step) = (generation.cast_signed(), start.step.cast_signed());
            let source = source.to_string();
            execute(sql, params![number, members, cause, now(), source, start.stage, step, term.cast_signed()])?;
            chain.append(transaction, ChainEntry::of_generation(RecordKind::Formed, *generation))
        }
        Record::Ready { generation, .. } => {
            execute("UPDATE generations SET ready_at = ? WHERE number = ?", params![now(), generation.cast_signed()])?;
            chain.append(transaction, ChainEntry::of_generation(RecordKind::Ready, *generation))
        }
        Record::Ended { generation, reason } => {
            let sql = "UPDATE generations SET ended_at = ?, ended_because = ? WHERE number = ?";
            execute(sql, params![now(), reason, generation.cast_signed()])?;
            chain.append(transaction, ChainEntry::of_generation(RecordKind::Ended, *generation))
        }
        Record::Step(step) => {
            write_step(transaction, step)?;
            chain.append(transaction, ChainEntry::at(RecordKind::Step, key_columns(step.position, step.generation)))
        }
        Record::Saved(checkpoint) => {
            let Checkpoint { position, generation, run_id, name, parameters_sha256 } = checkpoint;
            // If a checkpoint had the same name, the save has overwritten it.
            write_deletion(transaction, chain, name)?;
            let (stage, step, generation) = key_columns(*position, *generation);
            let sql = "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, NULL)";
            execute(sql, params![stage, step, generation, run_id, name, parameters_sha256, now()])?;
            chain.append(transaction, ChainEntry::at(RecordKind::Saved, (stage, step, generation)))
        }
        Record::Deleting(name) | Record::Damaged(name) => write_deletion(transaction, chain, name),
        Record::Evaluated { position, generation, evaluation, metrics } => {
            let captions = captions.get(evaluation).map_or(&[][..], Vec::as_slice);
            write_evaluation(transaction, chain, key_columns(*position, *generation), metrics, captions)
        }
        Record::Guard { position, generation, rule } => {
            write_guard_firing(transaction, chain, *position, *generation, rule, now())?;
            let TriggeredRule { metric, value, bound, action, .. } = rule;
            let (Position { stage, step }, action) = (*position, action.name());
            let detail = json!({ "stage": stage, "step": step, "metric": metric, "value": value, "bound": bound, "action": action });
            write_event(transaction, chain, GUARD_KIND, &detail)
        }
        Record::Attached(attachment) => write_attachment(transaction, chain, attachment, now()),
        Record::DataChanged { change, after } => write_data_change(transaction, chain, change, *after, now()),
        Record::StageEnded { generation, end } => {
            let EndDecision { position, cause, reason, .. } = end;
            write_stage_end(transaction, chain, *position, *generation, (cause.name(), reason), now())
        }
        Record::Paused { position, reason } => write_pause(transaction, chain, true, *position, reason, now()),
        Record::Resumed { position, reason } => write_pause(transaction, chain, false, *position, reason, now()),
        Record::HistoryMoved(moved) => write_history_move(transaction, chain, moved, now()),
        Record::RunEnded { outcome, position, reason, result } => {
            write_run_end(transaction, chain, outcome.name(), *position, (reason, result.as_deref()), now())
        }
        Record::Event { .. } => Ok(()),
    }?;
    match record.event() {
        Some((kind, detail)) => write_event(transaction, chain, kind.name(), &detail),
        None => Ok(()),
    }
}

/// Adds a row to a table whose key is a row number, and its entry of the hash chain. `columns` are
/// the names of the columns without the number.
fn insert_row(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    kind: RecordKind,
    table_and_columns: &str,
    row: &[&dyn ToSql],
) -> rusqlite::Result<()> {
    let parameters = vec!["?"; row.len()].join(", ");
    transaction.prepare_cached(&format!("INSERT INTO {table_and_columns} VALUES ({parameters})"))?.execute(row)?;
    chain.append(transaction, ChainEntry::of_row(kind, transaction.last_insert_rowid()))
}

pub(super) fn write_attachment(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    attachment: &Attachment,
    at: f64,
) -> rusqlite::Result<()> {
    let Attachment { worker_id, host, data_set, held_position } = attachment;
    let holds = held_position.map(|position| position.to_string());
    let table = "attachments (rank, host, train_images, train_captions, skipped_images, validation_images,
        training_fingerprint, validation_fingerprint, models_fingerprint, holds, at)";
    let row = params![
        worker_id.0,
        host,
        data_set.train_images.cast_signed(),
        data_set.train_captions.cast_signed(),
        data_set.skipped_images.cast_signed(),
        data_set.validation_images.cast_signed(),
        data_set.training_fingerprint,
        data_set.validation_fingerprint,
        data_set.models_fingerprint,
        holds,
        at,
    ];
    insert_row(transaction, chain, RecordKind::Attached, table, row)
}

pub(super) fn write_data_change(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    change: &DataChange,
    after: SplitSize,
    at: f64,
) -> rusqlite::Result<()> {
    let DataChange { generation, before, .. } = change;
    let numbers = [*generation, before.images, after.images, before.captions, after.captions].map(u64::cast_signed);
    let [generation, images_before, images_after, captions_before, captions_after] = numbers;
    let table = "data_changes (generation, images_before, images_after, captions_before, captions_after, at)";
    let row = params![generation, images_before, images_after, captions_before, captions_after, at];
    insert_row(transaction, chain, RecordKind::DataChanged, table, row)
}

pub(super) fn write_stage_end(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    position: Position,
    generation: u64,
    (cause, reason): (&str, &str),
    at: f64,
) -> rusqlite::Result<()> {
    let (stage, step, generation) = key_columns(position, generation);
    let table = "stage_ends (stage, step, generation, cause, reason, at)";
    insert_row(transaction, chain, RecordKind::StageEnded, table, params![stage, step, generation, cause, reason, at])
}

pub(super) fn write_pause(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    is_paused: bool,
    Position { stage, step }: Position,
    reason: &str,
    at: f64,
) -> rusqlite::Result<()> {
    let row = params![is_paused, stage, step.cast_signed(), reason, at];
    insert_row(transaction, chain, RecordKind::Pause, "pauses (is_paused, stage, step, reason, at)", row)
}

pub(super) fn write_history_move(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    HistoryMove { from, to, generation, source }: &HistoryMove,
    at: f64,
) -> rusqlite::Result<()> {
    let [from_step, to_step, generation] = [from.step, to.step, *generation].map(u64::cast_signed);
    let table = "history_moves (generation, from_stage, from_step, to_stage, to_step, source, at)";
    let row = params![generation, from.stage, from_step, to.stage, to_step, source.to_string(), at];
    insert_row(transaction, chain, RecordKind::HistoryMoved, table, row)
}

pub(super) fn write_run_end(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    outcome: &str,
    Position { stage, step }: Position,
    (reason, result): (&str, Option<&str>),
    at: f64,
) -> rusqlite::Result<()> {
    let row = params![outcome, stage, step.cast_signed(), reason, result, at];
    insert_row(transaction, chain, RecordKind::RunEnded, "run_ends (outcome, stage, step, reason, result, at)", row)
}

pub(super) fn write_guard_firing(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    position: Position,
    generation: u64,
    rule: &TriggeredRule,
    at: f64,
) -> rusqlite::Result<()> {
    let (stage, step, generation) = key_columns(position, generation);
    let TriggeredRule { metric, value, bound, action, is_above, first_position: first } = rule;
    let table =
        "guard_firings (stage, step, generation, metric, value, bound, is_above, action, first_stage, first_step, at)";
    let (action, first_step) = (action.name(), first.step.cast_signed());
    let row = params![stage, step, generation, metric, value, bound, is_above, action, first.stage, first_step, at];
    insert_row(transaction, chain, RecordKind::GuardFired, table, row)
}

/// Records that settings have changed at a position.
pub(super) fn write_settings_change(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    Position { stage, step }: Position,
    changes: &serde_json::Value,
    at: f64,
) -> rusqlite::Result<()> {
    let row = params![stage, step.cast_signed(), changes.to_string(), at];
    insert_row(transaction, chain, RecordKind::SettingsChanged, "settings_changes (stage, step, changes_json, at)", row)
}

/// Records that the journal replaces another one, and resumes from a checkpoint.
pub(super) fn write_recovery(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    position: Position,
    generation: u64,
    (checkpoint, run_ids): (&str, &serde_json::Value),
    at: f64,
) -> rusqlite::Result<()> {
    let (stage, step, generation) = key_columns(position, generation);
    let table = "recoveries (stage, step, generation, checkpoint, run_ids_json, at)";
    let row = params![stage, step, generation, checkpoint, run_ids.to_string(), at];
    insert_row(transaction, chain, RecordKind::Recovered, table, row)
}

/// The key of a step, checkpoint or evaluation: stage, step and generation, as SQLite's integers.
fn key_columns(position: Position, generation: u64) -> (u32, i64, i64) {
    (position.stage, position.step.cast_signed(), generation.cast_signed())
}

/// Writes an evaluation with its captions, in one entry of the hash chain.
fn write_evaluation(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    (stage, step, generation): (u32, i64, i64),
    metrics: &BTreeMap<String, f64>,
    captions: &[EvaluatedCaption],
) -> rusqlite::Result<()> {
    let row = params![stage, step, generation, json!(metrics).to_string(), now()];
    transaction.prepare_cached("INSERT INTO evaluations VALUES (?, ?, ?, ?, ?)")?.execute(row)?;
    let mut insert_item = transaction.prepare_cached("INSERT INTO evaluation_items VALUES (?, ?, ?, ?, ?, ?, ?)")?;
    for EvaluatedCaption { image, caption, references, scores } in captions {
        let (references, scores) = (json!(references).to_string(), json!(scores).to_string());
        insert_item.execute(params![stage, step, generation, image, caption, references, scores])?;
    }
    chain.append(transaction, ChainEntry::at(RecordKind::Evaluated, (stage, step, generation)))
}

/// Writes an event and its entry of the hash chain.
pub(super) fn write_event(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    kind: &str,
    detail: &serde_json::Value,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO events (at, kind, detail_json) VALUES (?, ?, ?)";
    transaction.prepare_cached(sql)?.execute(params![now(), kind, detail.to_string()])?;
    chain.append(transaction, ChainEntry::of_row(RecordKind::Event, transaction.last_insert_rowid()))
}

/// Records that the checkpoint of this name will be deleted, was overwritten or is damaged. Does
/// nothing if there is no such checkpoint.
fn write_deletion(transaction: &Transaction<'_>, chain: &mut ChainWriter, name: &str) -> rusqlite::Result<()> {
    let sql = "UPDATE checkpoints SET deleted = ? WHERE name = ? AND deleted IS NULL RETURNING stage, step, generation";
    let keys = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let deleted: Vec<_> =
        transaction.prepare_cached(sql)?.query_map(params![now(), name], keys)?.collect::<rusqlite::Result<_>>()?;
    deleted.into_iter().try_for_each(|keys| chain.append(transaction, ChainEntry::at(RecordKind::Deleted, keys)))
}

fn write_step(transaction: &Transaction<'_>, step: &StepStatistics) -> rusqlite::Result<()> {
    let summaries: BTreeMap<_, _> =
        step.summaries.iter().map(|(name, summary)| (*name, summary_json(summary))).collect();
    let lag = step.compute_times.straggler_lag();
    let row = params![
        step.position.stage,
        step.position.step.cast_signed(),
        step.generation.cast_signed(),
        step.loss(),
        step.learning_rate,
        step.gradient_norm,
        step.seconds,
        step.all_reduce_seconds,
        step.samples.cast_signed(),
        json!(summaries).to_string(),
        now(),
        lag.map(|(worker_id, _)| worker_id.0),
        lag.map(|(_, seconds)| seconds),
    ];
    transaction.prepare_cached("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")?.execute(row)?;
    Ok(())
}

/// The count, mean, range and quantiles of a distribution.
fn summary_json(summary: &Summary) -> serde_json::Value {
    let v1::Summary { count, mean, min, max, .. } = summary.into();
    let quantile = |q: f64| summary.quantile(q);
    json!({
        "count": count, "mean": mean, "min": min, "max": max,
        "p05": quantile(0.05), "p25": quantile(0.25), "p50": quantile(0.5), "p75": quantile(0.75), "p95": quantile(0.95),
    })
}
