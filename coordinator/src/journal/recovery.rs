//! A new journal in place of one that is lost or damaged.

use std::{collections::BTreeSet, path::Path};

use runfile::RunFile;
use rusqlite::Connection;
use serde_json::json;
use storage::Stamp;

use super::{Accept, Error, FILE, Journal, check, lock};
use crate::run::{
    plan::Place,
    record::{Checkpoint, Happening, Record, Source},
};

/// What SQLite keeps beside the file.
const BESIDE: [&str; 2] = ["-wal", "-shm"];

/// The checkpoints that a run can be recovered from.
#[derive(Clone, Debug)]
pub struct Recovery {
    /// Those up to the newest, by name.
    pub checkpoints: Vec<Stamp>,
    /// The one that the run goes on from.
    pub newest: Stamp,
    /// What the run was named when these and later ones were saved.
    pub run_ids: BTreeSet<String>,
}

impl Journal {
    /// Begins a journal that goes on from the newest of these checkpoints, under another name of the run: whoever has taken part in
    /// what the old journal may have told of begins anew. The old one is kept under another name in its folder.
    ///
    /// # Errors
    /// When another coordinator uses the folder, or it cannot be written to.
    pub fn recover(state: &Path, file: &RunFile, recovery: &Recovery) -> Result<Self, Error> {
        let lock = lock(state)?;
        let set_aside = set_aside(state).map_err(|source| Error::Open { path: state.to_owned(), source })?;
        let connection = Connection::open(state.join(FILE))?;
        check(&connection)?;
        let mut journal = Self::new_accepting(connection, file, Accept::Free)?;
        journal.write(&records(recovery, set_aside.as_deref()))?;
        Ok(Self { _lock: Some(lock), ..journal })
    }

    /// What the run was named in journals that this one took the place of.
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
    Ok(events.query_map([Happening::Recovered.name()], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// What a recovered journal begins with.
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
        // No worker was told of it: none has taken part in the run under its new name.
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
    [Record::Event { what: Happening::Recovered, detail }, formed].into_iter().chain(saved).collect()
}

/// Gives the journal in a folder another name, if there is one; says which.
fn set_aside(state: &Path) -> std::io::Result<Option<String>> {
    if !state.join(FILE).exists() {
        return Ok(None);
    }
    let is_free = |name: &String| !state.join(name).exists();
    let name = (1..).map(|number| format!("{FILE}.replaced-{number}")).find(is_free).expect("some number is free");
    // The file itself last: as long as it is there, a recovery that was interrupted begins again.
    for beside in BESIDE {
        match std::fs::rename(state.join(format!("{FILE}{beside}")), state.join(format!("{name}{beside}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(state.join(FILE), state.join(&name))?;
    Ok(Some(name))
}
