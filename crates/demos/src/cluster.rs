//! The data set and the processes of a run.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use config::RunFile;
use local_cluster::{Coordinator, Process, command, parameters_sha256};
use proto::v1::{StatusRequest, admin_client::AdminClient};

use crate::progress::Progress;

/// Interval of status requests to the coordinator.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Synthesizes a data set in `folder`, unless it exists. `more_options` are further options of
/// `worker synthesize`.
///
/// # Errors
/// It cannot be synthesized, or the existing one cannot be read or has another number of images.
pub fn synthesize(folder: &Path, images: u32, seed: u64, more_options: &[&str]) -> Result<()> {
    if folder.join("dataset.json").exists() {
        let found = std::fs::read_dir(folder.join("images")).with_context(|| folder.display().to_string())?.count();
        let folder = folder.display();
        ensure!(
            found == images as usize,
            "the data set in {folder} has {found} images, not {images}: remove that folder"
        );
        return Ok(());
    }
    let mut command = command("worker")?;
    command.arg("synthesize").arg("--out").arg(folder);
    command.args(["--images", &images.to_string(), "--seed", &seed.to_string()]).args(more_options);
    let status = command.status().context("cannot run worker synthesize")?;
    ensure!(status.success(), "worker synthesize failed");
    Ok(())
}

/// A coordinator and its workers.
pub struct Cluster {
    coordinator: Coordinator,
    workers: Vec<Process>,
}

impl Cluster {
    /// Starts a coordinator on free ports, with the run file at `run_file`, and as many workers as
    /// that run takes. `run` is the content of the run file.
    ///
    /// # Errors
    /// A program is missing or does not start.
    pub fn start(run_file: &Path, run: &RunFile) -> Result<Self> {
        let log = |name: &str| run.output.join(format!("{name}.log"));
        let coordinator = Coordinator::start(command("coordinator")?, run_file, &[], log("coordinator"))?;
        let (grpc, http) = (&coordinator.grpc_address, &coordinator.http_address);
        println!("coordinator: grpc={grpc} http={http}; page: http://{http}");
        let url = format!("http://{grpc}");
        let workers = (0..run.workers.max)
            .map(|id| {
                let mut command = command("worker")?;
                command.args(["join", "--coordinator", &url, "--rank", &id.to_string(), "--threads", "1"]);
                command.env("OMP_NUM_THREADS", "1");
                let name = format!("worker-{id}");
                Ok(Process::start(&name, &mut command, log(&name))?)
            })
            .collect::<Result<_>>()?;
        Ok(Self { coordinator, workers })
    }

    /// Shows progress until the run is complete. Returns the SHA-256 of each worker's parameters,
    /// by worker id.
    ///
    /// # Errors
    /// The coordinator cannot be reached, or a process failed. If it failed, the message has the
    /// last line of its log.
    pub async fn watch(mut self, mut progress: Progress) -> Result<BTreeMap<String, String>> {
        let url = format!("http://{}", self.coordinator.grpc_address);
        let mut admin = AdminClient::connect(url).await.context("cannot reach the coordinator")?;
        let mut tick = tokio::time::interval(POLL_INTERVAL);
        let mut is_running = true;
        while is_running {
            tick.tick().await;
            is_running = is_alive(&mut self.coordinator.process)?;
            for worker in &mut self.workers {
                is_running |= is_alive(worker)?;
            }
            // A coordinator that shuts down may not answer.
            if let Ok(status) = admin.status(StatusRequest {}).await {
                progress.show(&status.into_inner());
            }
        }
        progress.finish();
        let mut hashes = BTreeMap::new();
        for (id, worker) in self.workers.iter_mut().enumerate() {
            let printed = worker.finish()?;
            let hash = parameters_sha256(&printed).with_context(|| format!("worker {id} did not finish"))?;
            hashes.insert(id.to_string(), hash.to_owned());
        }
        Ok(hashes)
    }
}

/// Whether a process still runs. The error is that it ended with an exit status other than 0.
fn is_alive(process: &mut Process) -> Result<bool> {
    let status = process.try_wait()?;
    status.map_or(Ok(()), |status| process.check_exit_status(status))?;
    Ok(status.is_none())
}
