//! Writes records to the tables and to the hash chain.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use config::RunFile;
use dico_engine::{
    WorkerId, checkpoint::Checkpoint, guard::TriggeredRule, membership::Machine, plan::Position, record::Record,
    statistics::StepStatistics,
};
use proto::v1;
use rusqlite::{Row, Transaction, params};
use serde_json::json;
use summary_statistics::Summary;

use super::chain::{ChainEntry, ChainWriter, RecordKind};

/// The present time in Unix seconds.
fn now() -> f64 {
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

/// Writes a record and its entry of the hash chain.
pub(super) fn write_record(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    record: &Record,
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
        Record::Evaluated { position, generation, metrics, items } => {
            let (stage, step, generation) = key_columns(*position, *generation);
            let sql = "INSERT INTO evaluations VALUES (?, ?, ?, ?, ?)";
            execute(sql, params![stage, step, generation, json!(metrics).to_string(), now()])?;
            let sql = "INSERT INTO evaluation_items VALUES (?, ?, ?, ?, ?, ?, ?)";
            for item in items {
                let (references, scores) = (json!(item.references).to_string(), json!(item.scores).to_string());
                execute(sql, params![stage, step, generation, item.image, item.caption, references, scores])?;
            }
            chain.append(transaction, ChainEntry::at(RecordKind::Evaluated, (stage, step, generation)))
        }
        Record::Guard { position, rule } => {
            let TriggeredRule { metric, value, bound, action, .. } = rule;
            let (Position { stage, step }, action) = (*position, action.name());
            let detail = json!({ "stage": stage, "step": step, "metric": metric, "value": value, "bound": bound, "action": action });
            write_event(transaction, chain, "guard", &detail)
        }
        Record::Event { kind, detail } => write_event(transaction, chain, kind.name(), detail),
    }
}

/// The key of a step, checkpoint or evaluation: stage, step and generation, as SQLite's integers.
fn key_columns(position: Position, generation: u64) -> (u32, i64, i64) {
    (position.stage, position.step.cast_signed(), generation.cast_signed())
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
