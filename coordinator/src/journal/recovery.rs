//! Recovery (`serve --recover`): replaces a lost or damaged journal by a new one that resumes from
//! a checkpoint.

use std::{collections::BTreeSet, path::Path};

use checkpoint_store::CheckpointMetadata;
use config::RunFile;
use dico_engine::{
    checkpoint::Checkpoint,
    event_kind::EventKind,
    plan::Position,
    record::{Record, StateSource},
};
use rusqlite::Connection;
use serde_json::json;

use super::{
    AcceptedChanges, Error, FILE_NAME, Journal,
    integrity::check_intact,
    lock,
    write::{now, write_record, write_recovery},
};

/// The suffixes of the files that SQLite keeps beside the database.
const SQLITE_SUFFIXES: [&str; 2] = ["-wal", "-shm"];

/// The checkpoints from which a run can be recovered.
#[derive(Clone, Debug)]
pub struct RecoveryCheckpoints {
    /// All usable checkpoints at positions up to that of `newest`.
    pub checkpoints: Vec<CheckpointMetadata>,
    /// The checkpoint that the run resumes from.
    pub newest: CheckpointMetadata,
    /// The run ids under which these checkpoints, and those at later positions, were saved.
    pub run_ids: BTreeSet<String>,
}

impl Journal {
    /// Creates a journal that resumes from the newest of these checkpoints, with a new run id.
    /// Workers that took part in the run under its old id have to join again without their
    /// parameters, because these may be the result of steps that only the lost journal has
    /// recorded. The old journal is kept under another name in its folder.
    ///
    /// # Errors
    /// Another coordinator uses the folder, or the folder is not writable.
    pub fn recover(folder: &Path, file: &RunFile, recovery: &RecoveryCheckpoints) -> Result<Self, Error> {
        let lock = lock(folder)?;
        let renamed_to =
            rename_old_journal(folder).map_err(|source| Error::Open { path: folder.to_owned(), source })?;
        let connection = Connection::open(folder.join(FILE_NAME))?;
        check_intact(&connection)?;
        let mut journal = Self::new_with_changes(connection, file, AcceptedChanges::Free)?;
        journal.write_recovery(recovery, renamed_to.as_deref())?;
        Ok(Self { _lock: Some(lock), ..journal })
    }

    /// The ids that the run had in earlier journals, which this one replaced.
    ///
    /// # Errors
    /// SQLite cannot read the journal.
    pub fn former_run_ids(&self) -> Result<BTreeSet<String>, Error> {
        former_run_ids(&self.connection)
    }
}

pub(super) fn former_run_ids(connection: &Connection) -> Result<BTreeSet<String>, Error> {
    let query = "SELECT value FROM recoveries, json_each(run_ids_json)";
    Ok(connection.prepare(query)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?)
}

impl Journal {
    /// Writes the first records of a recovered journal. `renamed_to` is the new name of the old
    /// journal, if there was one.
    fn write_recovery(&mut self, recovery: &RecoveryCheckpoints, renamed_to: Option<&str>) -> Result<(), Error> {
        let RecoveryCheckpoints { checkpoints, newest, run_ids } = recovery;
        let position = |metadata: &CheckpointMetadata| Position { stage: metadata.stage, step: metadata.step };
        let run_ids = json!(run_ids);
        let detail = json!({
            "stage": newest.stage,
            "step": newest.step,
            "generation": newest.generation,
            "checkpoint": newest.checkpoint,
            "run_ids": run_ids,
            "journal": newest.journal.to_string(),
            "set_aside": renamed_to,
        });
        let (transaction, mut chain) = (self.connection.transaction()?, self.chain.clone());
        let checkpoint_and_ids = (newest.checkpoint.as_str(), &run_ids);
        let (start, generation) = (position(newest), newest.generation);
        write_recovery(&transaction, &mut chain, start, generation, checkpoint_and_ids, now())?;
        write_record(&transaction, &mut chain, &Record::Event { kind: EventKind::Recovered, detail })?;
        let formed = Record::Formed {
            generation,
            // The term identifies a generation to workers. No worker has taken part in the run
            // under its new id, so any term will do.
            term: 0,
            members: Vec::new(),
            cause: "the journal was recovered".to_owned(),
            start,
            source: StateSource::Checkpoint(newest.checkpoint.clone()),
        };
        write_record(&transaction, &mut chain, &formed)?;
        for metadata in checkpoints {
            let saved = Record::Saved(Checkpoint {
                position: position(metadata),
                generation: metadata.generation,
                run_id: metadata.run_id.clone(),
                name: metadata.checkpoint.clone(),
                parameters_sha256: metadata.parameters_sha256.clone(),
            });
            write_record(&transaction, &mut chain, &saved)?;
        }
        transaction.commit()?;
        self.chain = chain;
        Ok(())
    }
}

/// Renames the old journal in a folder, if there is one. Returns its new name.
fn rename_old_journal(folder: &Path) -> std::io::Result<Option<String>> {
    if !folder.join(FILE_NAME).exists() {
        return Ok(None);
    }
    let is_unused = |name: &String| !folder.join(name).exists();
    let name =
        (1..).map(|number| format!("{FILE_NAME}.replaced-{number}")).find(is_unused).expect("some number is unused");
    // The database is renamed last: while it exists, an interrupted recovery is repeated.
    for suffix in SQLITE_SUFFIXES {
        match std::fs::rename(folder.join(format!("{FILE_NAME}{suffix}")), folder.join(format!("{name}{suffix}"))) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(folder.join(FILE_NAME), folder.join(&name))?;
    Ok(Some(name))
}
