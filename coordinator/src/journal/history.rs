//! A journal as others read it, also while its coordinator writes.

mod measured;

use std::{collections::BTreeSet, path::Path};

pub use measured::{Caption, Checkpoint, Cut, Evaluation, Measured};
use runfile::RunFile;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use serde_json::Value;
use storage::JournalHead;

use super::{Error, VERSION, Verdict, chain, checkpoint, exchanges, place, recovery, unsigned, verify};
use crate::run::{
    self,
    cuts::{Fate, Lineage, Selection},
    data::{Exchange, Size},
    plan::Place,
    record::Happening,
};

/// A journal that is only read.
#[derive(Debug)]
pub struct History {
    pub(super) connection: Connection,
}

/// A generation, as it was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// Identities of its members.
    pub members: Vec<u32>,
    /// Why the one before it ended.
    pub cause: String,
    /// Where it started.
    pub start: Place,
    /// Whose state it started from.
    pub source: String,
    /// When it was formed, in Unix seconds; and so on.
    pub formed_at: f64,
    /// When all its members were ready.
    pub ready_at: Option<f64>,
    /// When it ended.
    pub ended_at: Option<f64>,
}

/// A step that a generation reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The point that it reached.
    pub place: Place,
    /// The generation.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// What became of it.
    pub fate: Fate,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When, in Unix seconds.
    pub at: f64,
    /// What: the name of a [`Happening`], or `guard`.
    pub kind: String,
    /// Its particulars.
    pub detail: Value,
}

impl History {
    /// Opens the journal in the folder `state`.
    ///
    /// # Errors
    /// There is none, or another version wrote it.
    pub fn open(state: &Path) -> Result<Self, Error> {
        let path = state.join("journal.sqlite");
        if !path.is_file() {
            let below = state.join("coordinator");
            let problem = match below.join("journal.sqlite").is_file() {
                true => format!("there is no journal here, but one in {}", below.display()),
                false => "there is no journal".to_owned(),
            };
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, problem);
            return Err(Error::Open { path, source });
        }
        Self::new(Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?)
    }

    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// The journal behind a connection.
    ///
    /// # Errors
    /// Another version wrote it.
    pub fn new(connection: Connection) -> Result<Self, Error> {
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if found != VERSION {
            return Err(Error::OtherVersion { found });
        }
        Ok(Self { connection })
    }

    /// From now on the journal is read as it is at the first look.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn hold_still(&self) -> Result<(), Error> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN")?;
        }
        Ok(())
    }

    /// Checks pages and chain: whether all records are there as they were written, and no others.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn verify(&self) -> Result<Verdict, Error> {
        verify(&self.connection)
    }

    /// Whether this was the last record once.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn contains(&self, head: &JournalHead) -> Result<bool, Error> {
        Ok(chain::contains(&self.connection, head)?)
    }

    /// Names the run.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn run_id(&self) -> Result<String, Error> {
        super::run_id(&self.connection)
    }

    /// What the run was named in journals that this one took the place of.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn former_run_ids(&self) -> Result<BTreeSet<String>, Error> {
        recovery::former_run_ids(&self.connection)
    }

    /// Checkpoints that were not deleted.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn kept_checkpoints(&self) -> Result<Vec<run::record::Checkpoint>, Error> {
        let query = "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL ORDER BY stage, step";
        self.all(query, checkpoint)
    }

    /// The run file.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn run_file(&self) -> Result<RunFile, Error> {
        super::run_file(&self.connection)
    }

    /// Size of the training split, if a worker ever said.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn training_data(&self) -> Result<Option<Size>, Error> {
        let query = "SELECT detail_json FROM events WHERE kind = ? ORDER BY rowid DESC LIMIT 1";
        let joined = self.connection.query_row(query, [Happening::Joined.name()], |row| row.get::<_, String>(0));
        let detail: Value =
            joined.optional()?.and_then(|detail| serde_json::from_str(&detail).ok()).unwrap_or_default();
        let [images, captions] = ["train_images", "train_captions"].map(|key| detail[key].as_u64());
        Ok(images.zip(captions).map(|(images, captions)| Size { images, captions }))
    }

    /// Exchanges of training data, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn exchanges(&self) -> Result<Vec<Exchange>, Error> {
        exchanges(&self.connection)
    }

    /// Whether the run is complete.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn finished(&self) -> Result<bool, Error> {
        let query = "SELECT EXISTS (SELECT 1 FROM events WHERE kind = ?)";
        Ok(self.connection.query_row(query, [Happening::Finished.name()], |row| row.get(0))?)
    }

    /// All generations, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn generations(&self) -> Result<Vec<Generation>, Error> {
        let query = "SELECT number, members_json, cause, stage, step, source, formed_at, ready_at, ended_at
            FROM generations ORDER BY number";
        let generation = |row: &Row<'_>| {
            Ok(Generation {
                number: unsigned(row, 0)?,
                members: ranks(&row.get::<_, String>(1)?),
                cause: row.get(2)?,
                start: place(row, 3)?,
                source: row.get(5)?,
                formed_at: row.get(6)?,
                ready_at: row.get(7)?,
                ended_at: row.get(8)?,
            })
        };
        self.all(query, generation)
    }

    /// All steps that were reported, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn steps(&self) -> Result<Vec<Step>, Error> {
        let lineage = self.lineage()?;
        let step = |row: &Row<'_>| {
            let (place, generation) = (place(row, 0)?, unsigned(row, 2)?);
            Ok(Step { place, generation, at: row.get(3)?, fate: lineage.fate(place, generation) })
        };
        self.all("SELECT stage, step, generation, at FROM steps ORDER BY stage, step, generation", step)
    }

    /// All events, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn events(&self) -> Result<Vec<Event>, Error> {
        let query = "SELECT at, kind, detail_json FROM events ORDER BY rowid";
        let event = |row: &Row<'_>| {
            let detail = serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default();
            Ok(Event { at: row.get(0)?, kind: row.get(1)?, detail })
        };
        self.all(query, event)
    }

    /// Starts of generations and ends of stages, each with the first generation that it does not concern.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn cuts(&self) -> Result<BTreeSet<(u64, Place)>, Error> {
        let cuts =
            self.all("SELECT generation + 1, stage, step FROM cuts", |row| Ok((unsigned(row, 0)?, place(row, 1)?)))?;
        Ok(cuts.into_iter().collect())
    }

    /// Stages that ended with an earlier state than their last, because that was the best one.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn selections(&self) -> Result<BTreeSet<Selection>, Error> {
        let query = "SELECT detail_json ->> 'stage', detail_json ->> 'step', detail_json ->> 'generation' FROM events
            WHERE kind = 'stage_ended' AND detail_json ->> 'cause' IN ('best_state', 'early_stopping')";
        let selection = |row: &Row<'_>| Ok(Selection { place: place(row, 0)?, generation: unsigned(row, 2)? });
        Ok(self.all(query, selection)?.into_iter().collect())
    }

    /// The history with all its branches.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn lineage(&self) -> Result<Lineage, Error> {
        Ok(Lineage::new(&self.cuts()?, &self.selections()?))
    }

    pub(super) fn all<T>(
        &self,
        query: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        Ok(self.connection.prepare(query)?.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}

fn ranks(members: &str) -> Vec<u32> {
    let members: Vec<Value> = serde_json::from_str(members).unwrap_or_default();
    let rank = |member: &Value| u32::try_from(member.get("rank")?.as_u64()?).ok();
    members.iter().filter_map(rank).collect()
}
