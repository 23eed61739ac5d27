//! Migration of a journal of the version before. That version had no tables of records on which a
//! restart or the audit depends: it read them back from the event log.
//!
//! The new tables are filled from the event log, and each new row gets an entry at the end of the
//! hash chain. The records that exist are not changed.

use config::{GuardAction, RunFile};
use dico_engine::{
    WorkerId,
    data::{DataChange, SplitSize},
    event_kind::EventKind,
    guard::TriggeredRule,
    plan::Position,
    record::{Attachment, HistoryMove, StateSource},
};
use proto::v1;
use rusqlite::{OptionalExtension, Transaction};
use serde_json::Value;

use super::{
    Error,
    chain::ChainWriter,
    queries::run_file,
    schema::{SCHEMA_SINCE_7, SCHEMA_VERSION},
    write::*,
};

/// Migrates a journal of version [`MIGRATED_VERSION`](super::schema::MIGRATED_VERSION).
pub(super) fn migrate(transaction: &Transaction<'_>, chain: &mut ChainWriter) -> Result<(), Error> {
    transaction.execute_batch("DROP VIEW IF EXISTS cuts")?;
    transaction.execute_batch(SCHEMA_SINCE_7)?;
    let file = run_file(transaction)?;
    let events: Vec<(f64, String, String)> = transaction
        .prepare("SELECT at, kind, detail_json FROM events ORDER BY number")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<Result<_, _>>()?;
    for (at, kind, detail) in events {
        let detail: Value = serde_json::from_str(&detail).unwrap_or_default();
        migrate_event(transaction, chain, &file, (at, &kind, &detail))?;
    }
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    Ok(())
}

/// Writes the typed record of an event, if its kind has one.
fn migrate_event(
    transaction: &Transaction<'_>,
    chain: &mut ChainWriter,
    file: &RunFile,
    (at, kind, detail): (f64, &str, &Value),
) -> rusqlite::Result<()> {
    let text = |key: &str| detail[key].as_str().unwrap_or_default();
    let number = |key: &str| detail[key].as_u64().unwrap_or_default();
    let (position, generation) = (position_of(detail), number("generation"));
    if kind == "guard" {
        let generation = generation_at(transaction, at)?;
        let rule = triggered_rule(file, position, detail);
        return write_guard_firing(transaction, chain, position, generation, &rule, at);
    }
    match EventKind::ALL.into_iter().find(|known| known.name() == kind) {
        Some(EventKind::Attached) => write_attachment(transaction, chain, &attachment(detail), at),
        Some(EventKind::DataChanged) if text("split") == "training" => {
            let sizes = |index: usize| SplitSize {
                images: detail["images_before_and_after"][index].as_u64().unwrap_or_default(),
                captions: detail["captions_before_and_after"][index].as_u64().unwrap_or_default(),
            };
            let change = DataChange { generation, from: None, before: sizes(0) };
            write_data_change(transaction, chain, &change, sizes(1), at)
        }
        Some(EventKind::StageEndedEarly) => {
            write_stage_end(transaction, chain, position, generation, (text("cause"), text("reason")), at)
        }
        Some(EventKind::Paused) => write_pause(transaction, chain, true, position, text("reason"), at),
        Some(EventKind::Resumed) => {
            write_pause(transaction, chain, false, parse_position(text("at")), text("reason"), at)
        }
        Some(EventKind::RolledBack | EventKind::Adopted) => {
            let (from, to) = (position_of(&detail["from"]), position_of(&detail["to"]));
            let moved = HistoryMove { from, to, generation, source: parse_source(text("source")) };
            write_history_move(transaction, chain, &moved, at)
        }
        Some(EventKind::Finished | EventKind::Stopped | EventKind::Failed) => {
            let reason_and_result = (text("reason"), detail["result"].as_str());
            write_run_end(transaction, chain, kind, parse_position(text("at")), reason_and_result, at)
        }
        Some(EventKind::SettingsChanged) => write_settings_change(transaction, chain, position, &detail["changes"], at),
        Some(EventKind::Recovered) => {
            let checkpoint_and_ids = (text("checkpoint"), &detail["run_ids"]);
            write_recovery(transaction, chain, position, generation, checkpoint_and_ids, at)
        }
        _ => Ok(()),
    }
}

/// The number of the last generation that was formed at this time.
fn generation_at(transaction: &Transaction<'_>, at: f64) -> rusqlite::Result<u64> {
    let query = "SELECT max(number) FROM generations WHERE formed_at <= ?";
    let number: Option<i64> = transaction.query_row(query, [at], |row| row.get(0)).optional()?.flatten();
    Ok(number.unwrap_or_default().cast_unsigned())
}

/// The rule that has fired. The event does not have the first of the consecutive values beyond the
/// bound: it is as many steps earlier as the rule's `for` says.
fn triggered_rule(file: &RunFile, position: Position, detail: &Value) -> TriggeredRule {
    let (metric, action) = (detail["metric"].as_str().unwrap_or_default(), detail["action"].as_str());
    let bound = detail["bound"].as_f64().unwrap_or_default();
    let rules = file.stages.get(position.stage as usize).map_or(&[][..], |stage| &stage.guard);
    let rule = rules.iter().find(|rule| rule.metric == metric && rule.above.or(rule.below) == Some(bound));
    let steps = rule.map_or(1, |rule| u64::from(rule.for_));
    TriggeredRule {
        metric: metric.to_owned(),
        value: detail["value"].as_f64().unwrap_or(f64::NAN),
        bound,
        action: GuardAction::ALL.into_iter().find(|known| Some(known.name()) == action).unwrap_or(GuardAction::Warn),
        is_above: rule.is_none_or(|rule| rule.above.is_some()),
        first_position: Position { step: position.step.saturating_sub(steps), ..position },
    }
}

fn attachment(detail: &Value) -> Attachment {
    let text = |key: &str| detail[key].as_str().unwrap_or_default().to_owned();
    let number = |key: &str| detail[key].as_u64().unwrap_or_default();
    Attachment {
        worker_id: WorkerId(u32::try_from(number("rank")).unwrap_or_default()),
        host: text("host"),
        data_set: v1::DataSet {
            train_images: number("train_images"),
            train_captions: number("train_captions"),
            skipped_images: number("skipped_images"),
            validation_images: number("validation_images"),
            training_fingerprint: text("training_fingerprint"),
            validation_fingerprint: text("validation_fingerprint"),
            models_fingerprint: text("models_fingerprint"),
        },
        held_position: detail["holds"].as_str().map(parse_position),
    }
}

/// The position in the fields `stage` and `step`.
fn position_of(json: &Value) -> Position {
    let number = |key: &str| json[key].as_u64().unwrap_or_default();
    Position { stage: u32::try_from(number("stage")).unwrap_or_default(), step: number("step") }
}

/// Parses a position that was written as text: `stage 1 step 20`.
fn parse_position(text: &str) -> Position {
    let parse = || {
        let (stage, step) = text.strip_prefix("stage ")?.split_once(" step ")?;
        Some(Position { stage: stage.parse().ok()?, step: step.parse().ok()? })
    };
    parse().unwrap_or_default()
}

/// Parses a source that was written as text: `worker 3`, `checkpoint NAME` or `seed`.
fn parse_source(text: &str) -> StateSource {
    match text.split_once(' ') {
        Some(("worker", id)) => StateSource::Member(WorkerId(id.parse().unwrap_or_default())),
        Some(("checkpoint", name)) => StateSource::Checkpoint(name.to_owned()),
        _ => StateSource::Seed,
    }
}
