//! The coordinator under load, in a separate process.

use std::path::Path;

use anyhow::{Context, Result};
use local_cluster::Coordinator;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::load::Load;

/// A running coordinator, with the folder of its output.
pub struct Daemon {
    coordinator: Coordinator,
    folder: TempDir,
}

/// The content of the coordinator's journal after the test.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    /// The number of generations.
    pub generations: u64,
    /// The number of steps that all workers reported.
    pub steps: u64,
}

impl Daemon {
    /// Starts a coordinator that waits for all workers of this load.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(load: &Load) -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let config = folder.path().join("run.yaml");
        std::fs::write(&config, run_file(load, folder.path())).with_context(|| config.display().to_string())?;
        let mut command = local_cluster::command("coordinator")?;
        if std::env::var_os("RUST_LOG").is_none() {
            // Avoids a log line for each worker that joins.
            command.env("RUST_LOG", "warn");
        }
        let coordinator = Coordinator::start(command, &config, &[], folder.path().join("coordinator.log"))?;
        Ok(Self { coordinator, folder })
    }

    /// The coordinator's URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.coordinator.grpc)
    }

    /// The id of the coordinator's process.
    pub fn process(&self) -> u32 {
        self.coordinator.process.id()
    }

    /// Waits until the coordinator has ended. Returns the content of its journal.
    ///
    /// # Errors
    /// It ended with an error.
    pub fn finish(mut self) -> Result<Recorded> {
        self.coordinator.process.finish()?;
        let path = self.folder.path().join("coordinator/journal.sqlite");
        let journal = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let count = |sql: &str| journal.query_row(sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned);
        let generations = count("SELECT count(*) FROM generations")?;
        Ok(Recorded { generations, steps: count("SELECT count(DISTINCT step) FROM steps")? })
    }
}

/// A run with a boundary in the middle and one at the end. The coordinator reads neither
/// data nor weights: there need not be any.
fn run_file(load: &Load, output: &Path) -> String {
    let Load { workers, steps, .. } = load;
    let half = steps.div_ceil(2);
    // A JSON string is a valid YAML string, whatever characters are in the path.
    let output = serde_json::Value::from(output.to_string_lossy());
    format!(
        "name: simulated
output: {output}
workers: {{ min: {workers}, max: {workers} }}
data: {{ karpathy: {{ annotations: none.json, images: none }} }}
captioner: {{ weights: none }}
evaluator: {{ weights: none }}
stages:
  - name: dico
    objective: dico
    steps: {steps}
    batch: {workers}
    checkpoint_every: {half}
    evaluate_every: {half}
    optimizer: {{ learning_rate: 1.0e-5 }}
"
    )
}
