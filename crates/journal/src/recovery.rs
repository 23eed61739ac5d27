//! Recovery (`serve --recover`): replaces a lost or damaged journal by a new one that resumes from
//! a checkpoint.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use config::RunFile;
use dico_engine::{
    checkpoint::Checkpoint,
    event_kind::EventKind,
    record::{Record, StateSource},
};
use proto::v1;
use rusqlite::Connection;
use serde_json::json;

use super::{
    AcceptedChanges, Error, FILE_NAME, Journal,
    integrity::check_intact,
    lock, queries,
    write::{now, write_record, write_recovery},
};

/// The suffixes of the files that SQLite keeps beside the database.
const SQLITE_SUFFIXES: [&str; 2] = ["-wal", "-shm"];

/// The checkpoints from which a run can be recovered.
#[derive(Clone, Debug)]
pub struct RecoveryCheckpoints {
    /// All usable checkpoints at positions up to that of `newest`.
    pub checkpoints: Vec<Checkpoint>,
    /// The checkpoint that the run resumes from.
    pub newest: Checkpoint,
    /// The last record of the lost journal when the save of `newest` began.
    pub lost_head: v1::JournalHead,
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
        queries::former_run_ids(&self.connection)
    }

    /// Writes the first records of a recovered journal. `renamed_to` is the new name of the old
    /// journal, if there was one.
    fn write_recovery(&mut self, recovery: &RecoveryCheckpoints, renamed_to: Option<&str>) -> Result<(), Error> {
        let RecoveryCheckpoints { checkpoints, newest, lost_head, run_ids } = recovery;
        let Checkpoint { position: start, generation, name, .. } = newest;
        let (start, generation, run_ids) = (*start, *generation, json!(run_ids));
        let detail = json!({
            "stage": start.stage,
            "step": start.step,
            "generation": generation,
            "checkpoint": name,
            "run_ids": run_ids,
            "journal": lost_head.to_string(),
            "set_aside": renamed_to,
        });
        let (transaction, mut chain) = (self.connection.transaction()?, self.chain.clone());
        let checkpoint_and_ids = (name.as_str(), &run_ids);
        write_recovery(&transaction, &mut chain, start, generation, checkpoint_and_ids, now())?;
        let no_captions = BTreeMap::new();
        write_record(&transaction, &mut chain, &Record::Event { kind: EventKind::Recovered, detail }, &no_captions)?;
        let formed = Record::Formed {
            generation,
            // The term identifies a generation to workers. No worker has taken part in the run
            // under its new id, so any term will do.
            term: 0,
            members: Vec::new(),
            cause: "the journal was recovered".to_owned(),
            start,
            source: StateSource::Checkpoint(name.clone()),
        };
        write_record(&transaction, &mut chain, &formed, &no_captions)?;
        for checkpoint in checkpoints {
            write_record(&transaction, &mut chain, &Record::Saved(checkpoint.clone()), &no_captions)?;
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
