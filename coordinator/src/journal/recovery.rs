//! Recovery: a new journal in place of one that is lost or damaged.

use std::{collections::BTreeSet, path::Path};

use checkpoint_store::Stamp;
use config::RunFile;
use rusqlite::Connection;
use serde_json::json;

use super::{AcceptedChanges, Error, FILE, Journal, check, lock};
use crate::run::{
    plan::Place,
    record::{Checkpoint, EventKind, Record, Source},
};

/// The suffixes of SQLite's files beside the database.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The checkpoints from which a run can be recovered.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// All usable checkpoints up to the newest.
    pub checkpoints: Vec<Stamp>,
    /// The checkpoint that the run resumes from.
    pub newest: Stamp,
    /// The run's ids when these and later checkpoints were saved.
    pub run_ids: BTreeSet<String>,
}

impl Journal {
    /// Creates a journal that resumes from the newest of these checkpoints, with a new run id.
    /// Workers that took part in the run under its old id have to join again without state, because
    /// the lost journal may have had later records. The old journal is kept under another name in
    /// its folder.
    ///
    /// # Errors
    /// When another coordinator uses the folder, or it cannot be written to.
    pub fn recover(state: &Path, file: &RunFile, recovery: &Recovery) -> Result<Self, Error> {
        let lock = lock(state)?;
        let set_aside = set_aside(state).map_err(|source| Error::Open { path: state.to_owned(), source })?;
        let connection = Connection::open(state.join(FILE))?;
        check(&connection)?;
        let mut journal = Self::new_accepting(connection, file, AcceptedChanges::Free)?;
        journal.write(&records(recovery, set_aside.as_deref()))?;
        Ok(Self { _lock: Some(lock), ..journal })
    }

    /// The run's ids in journals that this one replaced.
    ///
    /// # Errors
    /// When SQLite cannot read it.
    pub fn former_run_ids(&self) -> Result<BTreeSet<String>, Error> {
        former_run_ids(&self.connection)
    }
}

pub(super) fn former_run_ids(connection: &Connection) -> Result<BTreeSet<String>, Error> {
    let query = "SELECT value FROM events, json_each(detail_json, '$.run_ids') WHERE kind = ?";
    let mut events = connection.prepare(query)?;
    Ok(events.query_map([EventKind::Recovered.name()], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// The first records of a recovered journal.
fn records(Recovery { checkpoints, newest, run_ids }: &Recovery, set_aside: Option<&str>) -> Vec<Record> {
    let place = |stamp: &Stamp| Place { stage: stamp.stage, step: stamp.step };
    let detail = json!({
        "stage": newest.stage,
        "step": newest.step,
        "generation": newest.generation,
        "checkpoint": newest.checkpoint,
        "run_ids": run_ids,
        "journal": newest.journal.to_string(),
        "set_aside": set_aside,
    });
    let formed = Record::Formed {
        generation: newest.generation,
        // No worker was told of it: none has taken part in the run under its new id.
        term: 0,
        members: Vec::new(),
        cause: "the journal was recovered".to_owned(),
        start: place(newest),
        source: Source::Checkpoint(newest.checkpoint.clone()),
    };
    let saved = checkpoints.iter().map(|stamp| {
        Record::Saved(Checkpoint {
            place: place(stamp),
            generation: stamp.generation,
            run_id: stamp.run_id.clone(),
            name: stamp.checkpoint.clone(),
            parameters_sha256: stamp.parameters_sha256.clone(),
        })
    });
    [Record::Event { what: EventKind::Recovered, detail }, formed].into_iter().chain(saved).collect()
}

/// Renames the journal in a folder, if there is one. Returns its new name.
fn set_aside(state: &Path) -> std::io::Result<Option<String>> {
    if !state.join(FILE).exists() {
        return Ok(None);
    }
    let is_free = |name: &String| !state.join(name).exists();
    let name = (1..).map(|number| format!("{FILE}.replaced-{number}")).find(is_free).expect("some number is free");
    // The database itself last: as long as it is there, an interrupted recovery is repeated.
    for beside in BESIDE {
        match std::fs::rename(state.join(format!("{FILE}{beside}")), state.join(format!("{name}{beside}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(state.join(FILE), state.join(&name))?;
    Ok(Some(name))
}
