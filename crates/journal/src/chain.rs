//! The hash chain of a journal's records. The hash of each record covers the hash of the previous
//! one, so that every change, move or removal of a record is detected.
//!
//! Each record has one entry in the table `chain`. The entry has the kind and the key of the
//! record. Its hash is SHA-256 over the hash of the previous entry, the number of the record in the
//! chain (column `sequence`), the kind and key, and the content of the columns that the record has
//! written, each value with its type and, for texts and blobs, its length. The writer and the check
//! read the content from the tables with the same queries. The last entry is the head of the
//! journal. The metadata of each checkpoint (`state.json`) have the head at the time when the save
//! began. A user who can write to the journal can also recompute all hashes, but does not thereby
//! change the heads in checkpoints or in a log.

use proto::v1;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, params, types::ValueRef};
use sha2::{Digest, Sha256};

/// The hash before the first entry.
const INITIAL_HASH: [u8; 32] = [0; 32];
/// Maximal number of problems that are listed. Further problems are only counted.
const MAX_LISTED_PROBLEMS: usize = 20;

pub(super) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS chain (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, stage INTEGER, step INTEGER, generation INTEGER, number INTEGER,
    hash BLOB NOT NULL);
";

/// The kind of a record. It determines the table, the key and the columns of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordKind {
    /// A run file, by the number of its row.
    RunFile,
    /// A new generation, by its number.
    Formed,
    /// A generation whose members are all ready, by its number.
    Ready,
    /// The end of a generation, by its number.
    Ended,
    /// A step, by stage, step and generation.
    Step,
    /// A complete checkpoint, by stage, step and generation.
    Saved,
    /// A checkpoint that will be deleted, was overwritten or is damaged, by stage, step and
    /// generation.
    Deleted,
    /// An evaluation with all its items, by stage, step and generation.
    Evaluated,
    /// An event, by the number of its row.
    Event,
    /// A worker that attached, by the number of its row.
    Attached,
    /// A change of the training data, by the number of its row.
    DataChanged,
    /// The end of a stage with an earlier state, by the number of its row.
    StageEnded,
    /// A pause of the run, or its end, by the number of its row.
    Pause,
    /// A move of the committed position, by the number of its row.
    HistoryMoved,
    /// The end of the run or of a coordinator process, by the number of its row.
    RunEnded,
    /// A guard rule that fired, by the number of its row.
    GuardFired,
    /// Changed settings, by the number of its row.
    SettingsChanged,
    /// The recovery of the journal, by the number of its row.
    Recovered,
}

/// The queries that read all records of a kind, and the content of one of them.
struct RecordQueries {
    kind: RecordKind,
    /// The name of the kind in the table `chain`.
    name: &'static str,
    /// The queries for a record's content. Parameters: stage, step, generation, number.
    queries: &'static [&'static str],
    /// The query for the keys of all records of the kind: stage, step, generation and number, as in
    /// the table `chain`.
    all_keys: &'static str,
}

const RECORD_QUERIES: [RecordQueries; 18] = [
    RecordQueries {
        kind: RecordKind::RunFile,
        name: "run",
        queries: &["SELECT * FROM run WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM run",
    },
    RecordQueries {
        kind: RecordKind::Formed,
        name: "formed",
        queries: &[
            "SELECT number, members_json, cause, formed_at, source, stage, step, term FROM generations WHERE number = ?3",
        ],
        all_keys: "SELECT NULL, NULL, number, NULL FROM generations",
    },
    RecordQueries {
        kind: RecordKind::Ready,
        name: "ready",
        queries: &["SELECT number, ready_at FROM generations WHERE number = ?3 AND ready_at IS NOT NULL"],
        all_keys: "SELECT NULL, NULL, number, NULL FROM generations WHERE ready_at IS NOT NULL",
    },
    RecordQueries {
        kind: RecordKind::Ended,
        name: "ended",
        queries: &["SELECT number, ended_at, ended_because FROM generations
            WHERE number = ?3 AND (ended_at IS NOT NULL OR ended_because IS NOT NULL)"],
        all_keys: "SELECT NULL, NULL, number, NULL FROM generations
            WHERE ended_at IS NOT NULL OR ended_because IS NOT NULL",
    },
    RecordQueries {
        kind: RecordKind::Step,
        name: "step",
        queries: &["SELECT * FROM steps WHERE (stage, step, generation) = (?1, ?2, ?3)"],
        all_keys: "SELECT stage, step, generation, NULL FROM steps",
    },
    RecordQueries {
        kind: RecordKind::Saved,
        name: "saved",
        queries: &["SELECT stage, step, generation, run_id, name, parameters_sha256, at FROM checkpoints
            WHERE (stage, step, generation) = (?1, ?2, ?3)"],
        all_keys: "SELECT stage, step, generation, NULL FROM checkpoints",
    },
    RecordQueries {
        kind: RecordKind::Deleted,
        name: "deleted",
        queries: &["SELECT name, deleted FROM checkpoints
            WHERE (stage, step, generation) = (?1, ?2, ?3) AND deleted IS NOT NULL"],
        all_keys: "SELECT stage, step, generation, NULL FROM checkpoints WHERE deleted IS NOT NULL",
    },
    RecordQueries {
        kind: RecordKind::Evaluated,
        name: "evaluated",
        queries: &[
            "SELECT * FROM evaluations WHERE (stage, step, generation) = (?1, ?2, ?3)",
            "SELECT * FROM evaluation_items WHERE (stage, step, generation) = (?1, ?2, ?3) ORDER BY image",
        ],
        all_keys: "SELECT stage, step, generation, NULL FROM evaluations
            UNION SELECT DISTINCT stage, step, generation, NULL FROM evaluation_items",
    },
    RecordQueries {
        kind: RecordKind::Event,
        name: "event",
        queries: &["SELECT * FROM events WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM events",
    },
    RecordQueries {
        kind: RecordKind::Attached,
        name: "attached",
        queries: &["SELECT * FROM attachments WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM attachments",
    },
    RecordQueries {
        kind: RecordKind::DataChanged,
        name: "data_changed",
        queries: &["SELECT * FROM data_changes WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM data_changes",
    },
    RecordQueries {
        kind: RecordKind::StageEnded,
        name: "stage_ended",
        queries: &["SELECT * FROM stage_ends WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM stage_ends",
    },
    RecordQueries {
        kind: RecordKind::Pause,
        name: "pause",
        queries: &["SELECT * FROM pauses WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM pauses",
    },
    RecordQueries {
        kind: RecordKind::HistoryMoved,
        name: "history_moved",
        queries: &["SELECT * FROM history_moves WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM history_moves",
    },
    RecordQueries {
        kind: RecordKind::RunEnded,
        name: "run_ended",
        queries: &["SELECT * FROM run_ends WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM run_ends",
    },
    RecordQueries {
        kind: RecordKind::GuardFired,
        name: "guard_fired",
        queries: &["SELECT * FROM guard_firings WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM guard_firings",
    },
    RecordQueries {
        kind: RecordKind::SettingsChanged,
        name: "settings_changed",
        queries: &["SELECT * FROM settings_changes WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM settings_changes",
    },
    RecordQueries {
        kind: RecordKind::Recovered,
        name: "recovered",
        queries: &["SELECT * FROM recoveries WHERE number = ?4"],
        all_keys: "SELECT NULL, NULL, NULL, number FROM recoveries",
    },
];

/// An entry of the chain without its hash: the kind and key of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChainEntry {
    pub kind: RecordKind,
    pub stage: Option<u32>,
    pub step: Option<i64>,
    pub generation: Option<i64>,
    pub number: Option<i64>,
}

impl ChainEntry {
    /// The entry of a record whose key is a generation.
    pub fn of_generation(kind: RecordKind, generation: u64) -> Self {
        Self { kind, stage: None, step: None, generation: Some(generation.cast_signed()), number: None }
    }

    /// The entry of a record whose key is stage, step and generation.
    pub fn at(kind: RecordKind, (stage, step, generation): (u32, i64, i64)) -> Self {
        Self { kind, stage: Some(stage), step: Some(step), generation: Some(generation), number: None }
    }

    /// The entry of a record whose key is the number of its row.
    pub fn of_row(kind: RecordKind, number: i64) -> Self {
        Self { kind, stage: None, step: None, generation: None, number: Some(number) }
    }

    fn queries(&self) -> &'static RecordQueries {
        RECORD_QUERIES.iter().find(|queries| queries.kind == self.kind).expect("each kind has queries")
    }

    fn key_columns(&self) -> [&dyn ToSql; 4] {
        [&self.stage, &self.step, &self.generation, &self.number]
    }

    /// The hash of this entry with the number `record_number`, given the hash of the previous
    /// entry; `None` if the tables do not have the record.
    fn hash(
        &self,
        connection: &Connection,
        record_number: u64,
        previous: &[u8; 32],
    ) -> rusqlite::Result<Option<[u8; 32]>> {
        let queries = self.queries();
        let mut hash = Sha256::new();
        hash.update(previous);
        hash.update(record_number.to_le_bytes());
        hash.update(queries.name);
        for key in [self.stage.map(i64::from), self.step, self.generation, self.number] {
            hash.update([u8::from(key.is_some())]);
            hash.update(key.unwrap_or_default().to_le_bytes());
        }
        let mut exists = false;
        for query in queries.queries {
            let mut statement = connection.prepare_cached(query)?;
            let columns = statement.column_count();
            for (number, key) in (1..).zip(self.key_columns()) {
                // A query uses only the parameters that it needs.
                if number <= statement.parameter_count() {
                    statement.raw_bind_parameter(number, key)?;
                }
            }
            let mut rows = statement.raw_query();
            while let Some(row) = rows.next()? {
                exists = true;
                (0..columns).try_for_each(|column| hash_value(&mut hash, row.get_ref(column)?))?;
            }
        }
        Ok(exists.then(|| hash.finalize().into()))
    }

    /// Reads an entry from a row of the table `chain`; `None` if its kind is unknown.
    pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Option<Self>> {
        let name = row.get_ref(1)?.as_str()?;
        let Some(queries) = RECORD_QUERIES.iter().find(|queries| queries.name == name) else { return Ok(None) };
        let (stage, step, generation, number) = (row.get(2)?, row.get(3)?, row.get(4)?, row.get(5)?);
        Ok(Some(Self { kind: queries.kind, stage, step, generation, number }))
    }
}

impl std::fmt::Display for ChainEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.queries().name;
        match (self.stage, self.step, self.generation, self.number) {
            (Some(stage), Some(step), Some(generation), _) => {
                write!(f, "{name} (stage {stage} step {step} of generation {generation})")
            }
            (_, _, Some(generation), _) => write!(f, "{name} (generation {generation})"),
            (_, _, _, number) => write!(f, "{name} (row {})", number.unwrap_or_default()),
        }
    }
}

/// Hashes a value with its type and, for texts and blobs, its length.
fn hash_value(hash: &mut Sha256, value: ValueRef<'_>) -> rusqlite::Result<()> {
    let (type_tag, bytes): (u8, &[u8]) = match value {
        ValueRef::Null => (0, &[]),
        ValueRef::Integer(number) => {
            hash.update([1]);
            hash.update(number.to_le_bytes());
            return Ok(());
        }
        ValueRef::Real(number) => {
            hash.update([2]);
            hash.update(number.to_le_bytes());
            return Ok(());
        }
        ValueRef::Text(text) => (3, text),
        ValueRef::Blob(blob) => (4, blob),
    };
    hash.update([type_tag]);
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
    Ok(())
}

/// Appends entries to a chain.
#[derive(Clone, Debug)]
pub(super) struct ChainWriter {
    /// The number of the last entry; 0 if there is none.
    record_number: u64,
    /// The hash of the last entry.
    hash: [u8; 32],
}

impl ChainWriter {
    /// Continues the chain of a journal after its last entry. Does not check the chain.
    pub fn open(connection: &Connection) -> rusqlite::Result<Self> {
        let query = "SELECT sequence, hash FROM chain ORDER BY sequence DESC LIMIT 1";
        let last = connection.query_row(query, [], |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)));
        let (record_number, hash) = last.optional()?.unwrap_or((0, INITIAL_HASH));
        Ok(Self { record_number, hash })
    }

    /// Appends an entry for a record that was just written.
    pub fn append(&mut self, connection: &Connection, entry: ChainEntry) -> rusqlite::Result<()> {
        let record_number = self.record_number + 1;
        let hash = entry.hash(connection, record_number, &self.hash)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        let name = entry.queries().name;
        let row =
            params![record_number.cast_signed(), name, entry.stage, entry.step, entry.generation, entry.number, hash];
        connection.prepare_cached("INSERT INTO chain VALUES (?, ?, ?, ?, ?, ?, ?)")?.execute(row)?;
        *self = Self { record_number, hash };
        Ok(())
    }

    /// The number and hash of the last entry.
    pub fn head(&self) -> v1::JournalHead {
        v1::JournalHead { sequence: self.record_number, hash: hex(&self.hash) }
    }
}

/// The result of the check of all records of a journal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainCheck {
    /// The number and hash of the last entry.
    pub head: v1::JournalHead,
    /// Messages about the first problems.
    pub problems: Vec<String>,
    /// The number of all problems.
    pub count: u64,
}

impl ChainCheck {
    pub(super) fn add_problem(&mut self, problem: String) {
        self.count += 1;
        if self.problems.len() < MAX_LISTED_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

/// Checks that each record is unchanged, that none is missing, and that none was added without an
/// entry. Of the added records of each kind it reports only one.
///
/// # Errors
/// SQLite cannot read the journal.
pub(super) fn verify(connection: &Connection) -> rusqlite::Result<ChainCheck> {
    let (mut check, mut previous_hash, mut previous_number) = (ChainCheck::default(), INITIAL_HASH, 0);
    let mut chain = connection
        .prepare("SELECT sequence, kind, stage, step, generation, number, hash FROM chain ORDER BY sequence")?;
    let mut rows = chain.query([])?;
    while let Some(row) = rows.next()? {
        let record_number = row.get::<_, i64>(0)?.cast_unsigned();
        let hash: [u8; 32] = row.get(6)?;
        if record_number != previous_number + 1 {
            let (first, last) = (previous_number + 1, record_number.saturating_sub(1));
            check.add_problem(format!("records {first} to {last} are missing"));
        }
        match ChainEntry::read(row)? {
            None => check.add_problem(format!("record {record_number} is of an unknown kind")),
            Some(entry) => match entry.hash(connection, record_number, &previous_hash)? {
                None => check.add_problem(format!("record {record_number} is missing: {entry}")),
                Some(expected) if expected != hash => {
                    check.add_problem(format!("record {record_number} was changed: {entry}"));
                }
                Some(_) => {}
            },
        }
        // The next entry is checked against the stored hash, so that each problem is reported once.
        (previous_hash, previous_number) = (hash, record_number);
    }
    for RecordQueries { name, all_keys, .. } in &RECORD_QUERIES {
        let query = format!(
            "SELECT * FROM ({all_keys} EXCEPT SELECT stage, step, generation, number FROM chain WHERE kind = '{name}') LIMIT 1"
        );
        let keys =
            |row: &Row<'_>| (0..4).map(|column| row.get::<_, Option<i64>>(column)).collect::<Result<Vec<_>, _>>();
        if let Some(keys) = connection.query_row(&query, [], keys).optional()? {
            let keys: Vec<String> = keys.into_iter().flatten().map(|key| key.to_string()).collect();
            check.add_problem(format!("{name} {} was added", keys.join("/")));
        }
    }
    check.head = v1::JournalHead { sequence: previous_number, hash: hex(&previous_hash) };
    Ok(check)
}

/// Whether the chain has the entry that `head` names, with the same hash.
///
/// # Errors
/// SQLite cannot read the journal.
pub(super) fn contains(connection: &Connection, head: &v1::JournalHead) -> rusqlite::Result<bool> {
    let query = "SELECT hash FROM chain WHERE sequence = ?";
    let hash =
        connection.query_row(query, [head.sequence.cast_signed()], |row| row.get::<_, [u8; 32]>(0)).optional()?;
    Ok(hash.is_some_and(|hash| hex(&hash) == head.hash))
}

/// Bytes as hex digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
