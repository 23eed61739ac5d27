//! The coordinator under test, in a separate process.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use journal::ReadOnlyJournal;
use local_cluster::Coordinator;
use tempfile::TempDir;

use crate::load::LoadTest;

/// The coordinator under test, with the folder of its output.
pub struct TestCoordinator {
    coordinator: Coordinator,
    folder: TempDir,
}

/// Numbers of records in the coordinator's journal after the test.
#[derive(Clone, Copy, Debug)]
pub struct JournalCounts {
    /// The number of generations.
    pub generations: u64,
    /// The number of steps that at least one worker reported.
    pub steps: u64,
}

impl TestCoordinator {
    /// Starts a coordinator whose run needs all workers of this load.
    ///
    /// # Errors
    /// The temporary folder or the run file cannot be written, there is no coordinator beside this
    /// program, or it does not start.
    pub fn start(load: &LoadTest) -> Result<Self> {
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
        format!("http://{}", self.coordinator.grpc_address)
    }

    /// The process id of the coordinator.
    pub fn process_id(&self) -> u32 {
        self.coordinator.process.id()
    }

    /// Waits until the coordinator has ended. Returns the counts of its journal.
    ///
    /// # Errors
    /// The coordinator ended with an error, or its journal cannot be read.
    pub fn finish(mut self) -> Result<JournalCounts> {
        self.coordinator.process.finish()?;
        let journal = ReadOnlyJournal::open(&self.folder.path().join("coordinator"))?;
        let (generations, steps) = (journal.generations()?, journal.steps()?);
        let steps: BTreeSet<u64> = steps.into_iter().map(|step| step.position.step).collect();
        Ok(JournalCounts { generations: generations.len() as u64, steps: steps.len() as u64 })
    }
}

/// A run file of one stage, with a checkpoint and an evaluation after half of the steps (rounded
/// up) and at the end. Data and weights need not exist: only workers read them.
fn run_file(load: &LoadTest, output: &Path) -> String {
    let LoadTest { workers, steps, .. } = load;
    let half_of_steps = steps.div_ceil(2);
    // A JSON string is a valid YAML string for any path.
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
    checkpoint_every: {half_of_steps}
    evaluate_every: {half_of_steps}
    optimizer: {{ learning_rate: 1.0e-5 }}
"
    )
}
