//! The coordinator under load, in a separate process.

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, bail, ensure};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::Load;

/// A running coordinator, with the folder of its output.
pub struct Daemon {
    child: Child,
    url: String,
    process: u32,
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
    pub async fn start(load: &Load) -> Result<Self> {
        let folder = tempfile::tempdir().context("no temporary folder")?;
        let config = folder.path().join("run.yaml");
        std::fs::write(&config, run_file(load, folder.path())).with_context(|| config.display().to_string())?;
        let program = std::env::current_exe().context("this program's own path is unknown")?;
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(&config).args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        if std::env::var_os("RUST_LOG").is_none() {
            // Avoids a log line for each worker that joins.
            command.env("RUST_LOG", "warn");
        }
        // The coordinator is killed if this process ends for any reason.
        command.kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("cannot start the coordinator")?;
        let process = child.id().context("the coordinator is gone")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout was asked for")?).read_line(&mut line).await?;
        let Some(address) = line.split_whitespace().find_map(|word| word.strip_prefix("grpc=")) else {
            bail!("the coordinator ended with {} before it listened", child.wait().await?)
        };
        Ok(Self { child, url: format!("http://{address}"), process, folder })
    }

    /// The coordinator's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The id of the coordinator's process.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Waits until the coordinator has ended. Returns the content of its journal.
    ///
    /// # Errors
    /// It ended with an error.
    pub async fn finish(mut self) -> Result<Recorded> {
        let status = self.child.wait().await?;
        ensure!(status.success(), "the coordinator ended with {status}");
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
