//! The event log, which is for people, and other records in the form of events. The web page's
//! queries return a limited number of rows, because they run while the coordinator serves the run.

use dico_engine::{EventKind, plan::Position};
use rusqlite::Row;
use serde::Serialize;
use serde_json::{Value, json};

use super::ReadOnlyJournal;
use crate::{
    Error,
    queries::{read_position, read_u64},
    write::GUARD_KIND,
};

// Kinds without an `EventKind`, like `GUARD_KIND`: records that the journal has in tables of their
// own, and that are no events.
/// The kind of a generation that was formed, among events.
pub const GENERATION_KIND: &str = "generation";
/// The kind of a complete checkpoint, among events.
pub const CHECKPOINT_KIND: &str = "checkpoint";
/// The kind of a complete evaluation, among events.
pub const EVALUATION_KIND: &str = "evaluation";

/// Maximal number of checkpoints among the latest events.
const MAX_CHECKPOINTS_AMONG_EVENTS: usize = 10;

/// A recorded event, or another record in the form of an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// The kind: one of [`event_kinds`].
    pub kind: String,
    /// The details; the keys depend on the kind.
    pub detail: Value,
}

/// Counters that grow with the journal's rows. A counter changes when there are new rows to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RowCounters {
    /// Changes with events, generations and checkpoints.
    pub events: u64,
    /// Changes with evaluations.
    pub evaluations: u64,
}

/// A cursor of [`ReadOnlyJournal::events_since`]: for each of its four queries, the number or the
/// time of the last row that was read.
#[derive(Clone, Copy, Debug, Default)]
pub struct EventCursor([f64; 4]);

/// The names of all kinds of events: those of [`EventKind`], [`GUARD_KIND`], and the kinds of
/// generations, checkpoints and evaluations.
pub fn event_kinds() -> impl Iterator<Item = &'static str> {
    let other_kinds = [GUARD_KIND, GENERATION_KIND, CHECKPOINT_KIND, EVALUATION_KIND];
    EventKind::ALL.into_iter().map(EventKind::name).chain(other_kinds)
}

impl ReadOnlyJournal {
    /// The event log, in order. It is for people; typed records are in other tables.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn events(&self) -> Result<Vec<Event>, Error> {
        self.query_all("SELECT at, kind, detail_json FROM events ORDER BY number", read_event)
    }

    /// The latest `max` events, newest first. Includes generations (as `generation`) and
    /// checkpoints (as `checkpoint`), but only the last ten checkpoints: in a run that saves often,
    /// they would displace all other events.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn latest_events(&self, max: usize) -> Result<Vec<Event>, Error> {
        let query = format!("SELECT at, kind, detail_json FROM events ORDER BY number DESC LIMIT {max}");
        let mut events = self.query_all(&query, read_event)?;
        let query = format!(
            "SELECT formed_at, number, cause, stage, step, json_array_length(members_json) FROM generations
            ORDER BY number DESC LIMIT {max}"
        );
        events.extend(self.query_all(&query, |row| {
            let Position { stage, step } = read_position(row, 3)?;
            let (number, cause, members) = (read_u64(row, 1)?, row.get::<_, String>(2)?, row.get::<_, i64>(5)?);
            let detail =
                json!({ "generation": number, "members": members, "cause": cause, "stage": stage, "step": step });
            Ok(Event { at: row.get(0)?, kind: GENERATION_KIND.into(), detail })
        })?);
        let query = format!("SELECT at, name FROM checkpoints ORDER BY at DESC LIMIT {MAX_CHECKPOINTS_AMONG_EVENTS}");
        events.extend(self.query_all(&query, |row| {
            let detail = json!({ "name": row.get::<_, String>(1)? });
            Ok(Event { at: row.get(0)?, kind: CHECKPOINT_KIND.into(), detail })
        })?);
        events.sort_by(|a, b| b.at.total_cmp(&a.at));
        events.truncate(max);
        Ok(events)
    }

    /// The events beyond `cursor`, in order of time. Includes all generations, checkpoints and
    /// evaluations, also those that were given up. Advances `cursor` to the last event.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn events_since(&self, cursor: &mut EventCursor) -> Result<Vec<Event>, Error> {
        let queries = [
            "SELECT at, kind, detail_json, number FROM events WHERE number > ?1 ORDER BY number",
            "SELECT formed_at, 'generation', json_object('generation', number, 'members',
                json_array_length(members_json), 'cause', cause, 'stage', stage, 'step', step), formed_at
            FROM generations WHERE formed_at > ?1 ORDER BY formed_at",
            "SELECT at, 'checkpoint', json_object('stage', stage, 'step', step, 'name', name), at
            FROM checkpoints WHERE at > ?1 ORDER BY at",
            "SELECT at, 'evaluation', json_object('stage', stage, 'step', step, 'metrics', json(metrics_json)), at
            FROM evaluations WHERE at > ?1 ORDER BY at",
        ];
        let mut events = Vec::new();
        for (query, last) in queries.into_iter().zip(&mut cursor.0) {
            let mut statement = self.connection.prepare_cached(query)?;
            let mut rows = statement.query([*last])?;
            while let Some(row) = rows.next()? {
                *last = row.get(3)?;
                events.push(read_event(row)?);
            }
        }
        events.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(events)
    }

    /// The present counters of rows.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn row_counters(&self) -> Result<RowCounters, Error> {
        let query =
            "SELECT (SELECT ifnull(max(number), 0) FROM events) + (SELECT ifnull(max(number), 0) FROM generations)
            + (SELECT count(*) FROM checkpoints), (SELECT count(*) FROM evaluations)";
        let read_counters =
            |row: &Row<'_>| Ok(RowCounters { events: read_u64(row, 0)?, evaluations: read_u64(row, 1)? });
        Ok(self.connection.query_row(query, [], read_counters)?)
    }
}

/// Reads an event from the columns time, kind and detail.
fn read_event(row: &Row<'_>) -> rusqlite::Result<Event> {
    let detail = serde_json::from_str(row.get_ref(2)?.as_str()?).unwrap_or_default();
    Ok(Event { at: row.get(0)?, kind: row.get(1)?, detail })
}
