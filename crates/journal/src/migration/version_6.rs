//! Version 6 had no tables of records on which a restart or the audit depends: it read them back
//! from the event log.
//!
//! The new tables are filled from the event log, and each new row gets an entry at the end of the
//! hash chain. The records that exist are not changed. `guard_firings` begins empty: the event of a
//! rule does not say which state it disqualifies, and version 6 did not remember a rollback after a
//! restart.

use dico_engine::{
    WorkerId,
    data::{DataChange, SplitSize},
    event_kind::EventKind,
    plan::Position,
    record::{Attachment, HistoryMove, StateSource},
};
use proto::v1;
use rusqlite::Transaction;
use serde_json::Value;

use super::super::{
    Error,
    chain::ChainWriter,
    integrity::{refuse_problems, verify},
    schema::{MIGRATED_VERSIONS, SCHEMA_SINCE_7},
    write::*,
};

/// The version of these tables.
pub(super) const VERSION: i64 = MIGRATED_VERSIONS[1];

/// An event in the log.
pub(super) struct Event {
    /// The number of its row.
    pub number: i64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    pub kind: String,
    /// The details; null if they are not JSON.
    pub detail: Value,
}

/// Reads the event log, in order.
pub(super) fn read_events(transaction: &Transaction<'_>) -> Result<Vec<Event>, Error> {
    let mut events = transaction.prepare("SELECT number, at, kind, detail_json FROM events ORDER BY number")?;
    let events = events.query_map([], |row| {
        let detail = serde_json::from_str(&row.get::<_, String>(3)?).unwrap_or_default();
        Ok(Event { number: row.get(0)?, at: row.get(1)?, kind: row.get(2)?, detail })
    })?;
    Ok(events.collect::<Result<_, _>>()?)
}

/// Creates the new tables and fills them from `events`, if the journal is intact.
pub(super) fn migrate(transaction: &Transaction<'_>, chain: &mut ChainWriter, events: &[Event]) -> Result<(), Error> {
    let exists = |error: rusqlite::Error| Error::Damaged(format!("it is not of version {VERSION}: {error}"));
    transaction.execute_batch("DROP VIEW IF EXISTS cuts")?;
    transaction.execute_batch(SCHEMA_SINCE_7).map_err(exists)?;
    refuse_problems(&verify(transaction)?)?;
    for event in events {
        let Event { number, kind, .. } = event;
        let is_complete = event.migrate(transaction, chain)?;
        is_complete
            .ok_or_else(|| Error::Damaged(format!("event {number} of the kind {kind} lacks a part of its detail")))?;
    }
    Ok(())
}

impl Event {
    /// Writes the typed record of the event, if its kind has one. Returns none if the detail lacks
    /// a part.
    fn migrate(&self, transaction: &Transaction<'_>, chain: &mut ChainWriter) -> rusqlite::Result<Option<()>> {
        let (at, kind, detail) = (self.at, self.kind.as_str(), &self.detail);
        let kind_with_record = EventKind::ALL.into_iter().find(|known| known.name() == kind);
        match kind_with_record {
            Some(EventKind::Attached) => {
                self.attachment().map(|attachment| write_attachment(transaction, chain, &attachment, at))
            }
            Some(EventKind::DataChanged) if detail["split"] == "training" => {
                self.data_change().map(|(change, after)| write_data_change(transaction, chain, &change, after, at))
            }
            Some(EventKind::StageEndedEarly) => self.stage_end().map(|(position, generation, cause_and_reason)| {
                write_stage_end(transaction, chain, position, generation, cause_and_reason, at)
            }),
            Some(EventKind::Paused) => self.reason().map(|reason| {
                // Operators' pauses of early versions have no position.
                let position = position_of(detail).unwrap_or_default();
                write_pause(transaction, chain, true, position, reason, at)
            }),
            Some(EventKind::Resumed) => {
                let position = self.position_as_text().unwrap_or_default();
                Some(write_pause(transaction, chain, false, position, self.reason().unwrap_or_default(), at))
            }
            Some(EventKind::RolledBack | EventKind::Adopted) => {
                self.history_move().map(|moved| write_history_move(transaction, chain, &moved, at))
            }
            Some(EventKind::Finished | EventKind::Stopped | EventKind::Failed) => {
                let reason_and_result = (self.reason().unwrap_or_default(), detail["result"].as_str());
                let position = self.position_as_text().unwrap_or_default();
                Some(write_run_end(transaction, chain, kind, position, reason_and_result, at))
            }
            Some(EventKind::SettingsChanged) => position_of(detail)
                .map(|position| write_settings_change(transaction, chain, position, &detail["changes"], at)),
            Some(EventKind::Recovered) => self.recovery().map(|(position, generation, checkpoint)| {
                write_recovery(transaction, chain, position, generation, (checkpoint, &detail["run_ids"]), at)
            }),
            _ => Some(Ok(())),
        }
        .transpose()
    }

    fn attachment(&self) -> Option<Attachment> {
        let text = |key: &str| Some(self.detail[key].as_str()?.to_owned());
        let number = |key: &str| self.detail[key].as_u64();
        Some(Attachment {
            worker_id: WorkerId(u32::try_from(number("rank")?).ok()?),
            host: text("host")?,
            data_set: v1::DataSet {
                train_images: number("train_images")?,
                train_captions: number("train_captions")?,
                skipped_images: number("skipped_images")?,
                validation_images: number("validation_images")?,
                training_fingerprint: text("training_fingerprint")?,
                validation_fingerprint: text("validation_fingerprint")?,
                models_fingerprint: text("models_fingerprint")?,
            },
            held_position: self.detail["holds"].as_str().and_then(parse_position),
        })
    }

    fn data_change(&self) -> Option<(DataChange, SplitSize)> {
        let size = |index: usize| {
            Some(SplitSize {
                images: self.detail["images_before_and_after"][index].as_u64()?,
                captions: self.detail["captions_before_and_after"][index].as_u64()?,
            })
        };
        Some((DataChange { generation: self.generation()?, from: None, before: size(0)? }, size(1)?))
    }

    fn stage_end(&self) -> Option<(Position, u64, (&str, &str))> {
        let cause = self.detail["cause"].as_str()?;
        Some((position_of(&self.detail)?, self.generation()?, (cause, self.reason()?)))
    }

    fn history_move(&self) -> Option<HistoryMove> {
        let (from, to) = (position_of(&self.detail["from"])?, position_of(&self.detail["to"])?);
        let source = parse_source(self.detail["source"].as_str()?)?;
        Some(HistoryMove { from, to, generation: self.generation()?, source })
    }

    fn recovery(&self) -> Option<(Position, u64, &str)> {
        Some((position_of(&self.detail)?, self.generation()?, self.detail["checkpoint"].as_str()?))
    }

    fn generation(&self) -> Option<u64> {
        self.detail["generation"].as_u64()
    }

    fn reason(&self) -> Option<&str> {
        self.detail["reason"].as_str()
    }

    /// The position in the field `at`.
    fn position_as_text(&self) -> Option<Position> {
        parse_position(self.detail["at"].as_str()?)
    }
}

/// The position in the fields `stage` and `step`.
fn position_of(json: &Value) -> Option<Position> {
    let stage = u32::try_from(json["stage"].as_u64()?).ok()?;
    Some(Position { stage, step: json["step"].as_u64()? })
}

/// Parses a position that was written as text: `stage 1 step 20`.
fn parse_position(text: &str) -> Option<Position> {
    let (stage, step) = text.strip_prefix("stage ")?.split_once(" step ")?;
    Some(Position { stage: stage.parse().ok()?, step: step.parse().ok()? })
}

/// Parses a source that was written as text: `worker 3`, `checkpoint NAME` or `seed`.
fn parse_source(text: &str) -> Option<StateSource> {
    match text.split_once(' ') {
        Some(("worker", id)) => Some(StateSource::Member(WorkerId(id.parse().ok()?))),
        Some(("checkpoint", name)) => Some(StateSource::Checkpoint(name.to_owned())),
        _ => (text == "seed").then_some(StateSource::Seed),
    }
}
