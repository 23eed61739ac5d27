//! Read-only access to a journal, which a coordinator may be writing at the same time.

mod measurements;

use std::{collections::BTreeSet, path::Path};

use checkpoint_store::JournalHead;
use config::RunFile;
use dico_engine::{
    WorkerId,
    data::{DataChange, SplitSize},
    lineage::{Lineage, ModelSelection, StateFate},
    model_selection::EndCause,
    plan::Position,
};
pub use measurements::{Caption, CheckpointRow, Evaluation, LineageCursor, MeasuredStep};
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row};
use serde_json::Value;

use super::{
    ChainCheck, Error, FILE_NAME, chain,
    integrity::verify,
    queries::{self, read_checkpoint, read_position, read_u64},
    recovery,
    schema::SCHEMA_VERSION,
};

/// A journal opened for reading.
#[derive(Debug)]
pub struct ReadOnlyJournal {
    pub(super) connection: Connection,
}

/// The end of a stage with an earlier state than its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageEnd {
    /// The position of the state that the stage ended with.
    pub position: Position,
    /// The last generation of the stage.
    pub generation: u64,
    /// Why it ended.
    pub cause: EndCause,
}

/// A move of the committed position by the start of a generation: back if committed steps were
/// given up, forward if steps that are not in the journal were adopted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryMove {
    /// The number of the generation.
    pub generation: u64,
    /// The committed position before.
    pub from: Position,
    /// The start of the generation.
    pub to: Position,
}

/// The checkpoint from which a journal was recovered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The position of the checkpoint's state.
    pub position: Position,
    /// The generation that saved it.
    pub generation: u64,
    /// Its name.
    pub checkpoint: String,
}

/// A recorded generation.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The number of the generation.
    pub number: u64,
    /// The worker ids of its members.
    pub members: Vec<WorkerId>,
    /// Why the previous generation ended; `start` for a coordinator's first generation.
    pub cause: String,
    /// The position at which it started.
    pub start: Position,
    /// Where its initial parameters come from: `worker N`, `checkpoint NAME` or `seed`.
    pub source: String,
    /// When it was formed. Times are in Unix seconds.
    pub formed_at: f64,
    /// When all members were ready; `None` if they never were.
    pub ready_at: Option<f64>,
    /// When it ended; `None` if it has not ended.
    pub ended_at: Option<f64>,
}

/// A recorded step of a generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The position that the step reached.
    pub position: Position,
    /// The generation that trained it.
    pub generation: u64,
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// Whether the step belongs to the present history, was not selected, or was given up.
    pub fate: StateFate,
}

/// A recorded event, or another record in the form of an event.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it was recorded, in Unix seconds.
    pub at: f64,
    /// The kind: the name of an [`EventKind`](dico_engine::EventKind), or `guard`. Some queries
    /// also return records of other tables, as `generation`, `checkpoint` and `evaluation`.
    pub kind: String,
    /// The details; the keys depend on the kind.
    pub detail: Value,
}

impl ReadOnlyJournal {
    /// Opens the journal in `folder`.
    ///
    /// # Errors
    /// The folder has no journal, or another version of the program wrote it.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join(FILE_NAME);
        if !path.is_file() {
            let subfolder = folder.join("coordinator");
            let problem = match subfolder.join(FILE_NAME).is_file() {
                true => format!("there is no journal here, but there is one in {}", subfolder.display()),
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

    /// Reads a journal through this connection.
    ///
    /// # Errors
    /// Another version of the program wrote it.
    pub fn new(connection: Connection) -> Result<Self, Error> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version != SCHEMA_VERSION {
            return Err(Error::OtherVersion { found: version });
        }
        Ok(Self { connection })
    }

    /// Starts a read transaction. All later queries see the journal as of the first one.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn begin_snapshot(&self) -> Result<(), Error> {
        if self.connection.is_autocommit() {
            self.connection.execute_batch("BEGIN")?;
        }
        Ok(())
    }

    /// Checks the database pages, the definitions of the tables, and the hash chain: all records
    /// are unchanged, none is missing, and none was added without an entry.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn verify(&self) -> Result<ChainCheck, Error> {
        verify(&self.connection)
    }

    /// Whether the journal has the record that `head` names, with the same hash.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn contains(&self, head: &JournalHead) -> Result<bool, Error> {
        Ok(chain::contains(&self.connection, head)?)
    }

    /// The run's id.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn run_id(&self) -> Result<String, Error> {
        queries::run_id(&self.connection)
    }

    /// The ids that the run had in earlier journals, which this one replaced.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn former_run_ids(&self) -> Result<BTreeSet<String>, Error> {
        recovery::former_run_ids(&self.connection)
    }

    /// The checkpoints that were not deleted.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn kept_checkpoints(&self) -> Result<Vec<dico_engine::checkpoint::Checkpoint>, Error> {
        let query = "SELECT stage, step, generation, run_id, name, parameters_sha256 FROM checkpoints
            WHERE deleted IS NULL ORDER BY stage, step";
        self.query_all(query, read_checkpoint)
    }

    /// The last run file that the coordinator accepted.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn run_file(&self) -> Result<RunFile, Error> {
        queries::run_file(&self.connection)
    }

    /// The size of the training split, as described by the worker that attached last; `None` if no
    /// worker has attached.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn training_split_size(&self) -> Result<Option<SplitSize>, Error> {
        let query = "SELECT train_images, train_captions FROM attachments ORDER BY number DESC LIMIT 1";
        let read_size = |row: &Row<'_>| Ok(SplitSize { images: read_u64(row, 0)?, captions: read_u64(row, 1)? });
        Ok(self.connection.query_row(query, [], read_size).optional()?)
    }

    /// The changes of training data, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn data_changes(&self) -> Result<Vec<DataChange>, Error> {
        queries::data_changes(&self.connection)
    }

    /// Whether the run is complete.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn is_finished(&self) -> Result<bool, Error> {
        queries::is_finished(&self.connection)
    }

    /// All generations, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn generations(&self) -> Result<Vec<Generation>, Error> {
        let query = "SELECT number, members_json, cause, stage, step, source, formed_at, ready_at, ended_at
            FROM generations ORDER BY number";
        let read_generation = |row: &Row<'_>| {
            Ok(Generation {
                number: read_u64(row, 0)?,
                members: parse_worker_ids(&row.get::<_, String>(1)?),
                cause: row.get(2)?,
                start: read_position(row, 3)?,
                source: row.get(5)?,
                formed_at: row.get(6)?,
                ready_at: row.get(7)?,
                ended_at: row.get(8)?,
            })
        };
        self.query_all(query, read_generation)
    }

    /// All steps that were reported, in the order of the run.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn steps(&self) -> Result<Vec<Step>, Error> {
        let lineage = self.lineage()?;
        let read_step = |row: &Row<'_>| {
            let (position, generation) = (read_position(row, 0)?, read_u64(row, 2)?);
            Ok(Step { position, generation, at: row.get(3)?, fate: lineage.fate(position, generation) })
        };
        self.query_all("SELECT stage, step, generation, at FROM steps ORDER BY stage, step, generation", read_step)
    }

    /// The event log, in order. It is for people; typed records are in other tables.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn events(&self) -> Result<Vec<Event>, Error> {
        let query = "SELECT at, kind, detail_json FROM events ORDER BY rowid";
        let read_event = |row: &Row<'_>| {
            let detail = serde_json::from_str(&row.get::<_, String>(2)?).unwrap_or_default();
            Ok(Event { at: row.get(0)?, kind: row.get(1)?, detail })
        };
        self.query_all(query, read_event)
    }

    /// The branch points: the starts of generations and the ends of stages. Each has the number of
    /// the first generation that continued from there. Steps of earlier generations beyond that
    /// position are not part of the present history.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn branch_points(&self) -> Result<BTreeSet<(u64, Position)>, Error> {
        let points = self.query_all("SELECT generation + 1, stage, step FROM cuts", |row| {
            Ok((read_u64(row, 0)?, read_position(row, 1)?))
        })?;
        Ok(points.into_iter().collect())
    }

    /// The stages that ended with an earlier state than their last one, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn stage_ends(&self) -> Result<Vec<StageEnd>, Error> {
        let query = "SELECT stage, step, generation, cause FROM stage_ends ORDER BY number";
        let read_end = |row: &Row<'_>| Ok((read_position(row, 0)?, read_u64(row, 2)?, row.get::<_, String>(3)?));
        let ends = self.query_all(query, read_end)?.into_iter().map(|(position, generation, cause)| {
            let known = EndCause::ALL.into_iter().find(|known| known.name() == cause);
            let unknown = || Error::Damaged(format!("a stage ended with the unknown cause {cause:?}"));
            Ok(StageEnd { position, generation, cause: known.ok_or_else(unknown)? })
        });
        ends.collect()
    }

    /// The moves of the committed position by starts of generations, in order.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn history_moves(&self) -> Result<Vec<HistoryMove>, Error> {
        let query = "SELECT generation, from_stage, from_step, to_stage, to_step FROM history_moves ORDER BY number";
        let read_move = |row: &Row<'_>| {
            let (from, to) = (read_position(row, 1)?, read_position(row, 3)?);
            Ok(HistoryMove { generation: read_u64(row, 0)?, from, to })
        };
        self.query_all(query, read_move)
    }

    /// The checkpoint from which the journal was recovered; `None` if it was not recovered. The
    /// recovery follows the run file, as the second record.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn recovery(&self) -> Result<Option<Recovery>, Error> {
        let query = "SELECT recoveries.stage, recoveries.step, recoveries.generation, checkpoint FROM recoveries
            JOIN chain USING (number) WHERE chain.kind = 'recovered' AND sequence = 2";
        let read_recovery = |row: &Row<'_>| {
            Ok(Recovery { position: read_position(row, 0)?, generation: read_u64(row, 2)?, checkpoint: row.get(3)? })
        };
        Ok(self.connection.query_row(query, [], read_recovery).optional()?)
    }

    /// The stages that ended with an earlier checkpoint than their last, because the earlier one
    /// had the best score.
    ///
    /// # Errors
    /// SQLite cannot read them.
    pub fn selections(&self) -> Result<BTreeSet<ModelSelection>, Error> {
        let ends = self.stage_ends()?.into_iter().filter(|end| end.cause != EndCause::Guard);
        Ok(ends.map(|StageEnd { position, generation, .. }| ModelSelection { position, generation }).collect())
    }

    /// The lineage, which decides for each step whether it belongs to the present history.
    ///
    /// # Errors
    /// SQLite cannot read it.
    pub fn lineage(&self) -> Result<Lineage, Error> {
        Ok(Lineage::new(&self.branch_points()?, &self.selections()?))
    }

    pub(super) fn query_all<T>(
        &self,
        query: &str,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, Error> {
        Ok(self.connection.prepare(query)?.query_map([], read)?.collect::<Result<_, _>>()?)
    }
}

/// Parses the worker ids in the column `members_json`.
fn parse_worker_ids(members: &str) -> Vec<WorkerId> {
    let members: Vec<Value> = serde_json::from_str(members).unwrap_or_default();
    let worker_id = |member: &Value| u32::try_from(member.get("rank")?.as_u64()?).ok().map(WorkerId);
    members.iter().filter_map(worker_id).collect()
}
