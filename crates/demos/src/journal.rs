//! Reads a run's journal; `coordinator/src/journal/mod.rs` describes its tables.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};

/// The journal of a run.
pub struct Journal(Connection);

/// A recorded evaluation.
pub struct Evaluation {
    /// The step of the evaluated state, in its stage.
    pub step: u64,
    /// The last generation that evaluated this step.
    pub generation: u64,
    /// Scores by name.
    pub metrics: BTreeMap<String, f64>,
}

impl Journal {
    /// Opens a journal, also while a coordinator writes to it.
    ///
    /// # Errors
    /// There is no journal, or it cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        Ok(Self(connection.with_context(|| format!("cannot open {}", path.display()))?))
    }

    /// The evaluations of a stage, in order of step. If several generations evaluated a step, the
    /// evaluation of the last one.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn evaluations(&self, stage: usize) -> Result<Vec<Evaluation>> {
        let query =
            "SELECT step, MAX(generation), metrics_json FROM evaluations WHERE stage = ?1 GROUP BY step ORDER BY step";
        let mut statement = self.0.prepare(query)?;
        let rows = statement.query_map([stage], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))?;
        rows.map(|row| {
            let (step, generation, metrics) = row?;
            Ok(Evaluation { step, generation, metrics: serde_json::from_str(&metrics)? })
        })
        .collect()
    }

    /// The details (`detail_json`) of all events of a kind, in order.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub fn events(&self, kind: &str) -> Result<Vec<serde_json::Value>> {
        let mut statement = self.0.prepare("SELECT detail_json FROM events WHERE kind = ?1 ORDER BY rowid")?;
        let rows = statement.query_map([kind], |row| row.get::<_, String>(0))?;
        rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
    }

    /// The caption and the reference captions of each image in a stage's last evaluation.
    ///
    /// # Errors
    /// The stage was never evaluated, or the journal cannot be read.
    pub fn captions(&self, stage: usize) -> Result<BTreeMap<String, (String, Vec<String>)>> {
        let last = self.evaluations(stage)?.pop().with_context(|| format!("stage {stage} was never evaluated"))?;
        let query = "SELECT image, caption, references_json FROM evaluation_items WHERE stage = ?1 AND step = ?2 AND generation = ?3";
        let mut statement = self.0.prepare(query)?;
        let rows = statement.query_map(rusqlite::params![stage, last.step, last.generation], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?))
        })?;
        rows.map(|row| {
            let (image, caption, references) = row?;
            Ok((image, (caption, serde_json::from_str(&references)?)))
        })
        .collect()
    }
}
