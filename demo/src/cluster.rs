//! The processes of a run.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proto::v1::{StatusRequest, admin_client::AdminClient};
use runfile::RunFile;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::progress::Progress;

/// Interval of status requests to the coordinator.
const POLL: Duration = Duration::from_millis(250);

/// A program that was built beside this one.
///
/// # Errors
/// It does not exist.
pub fn program(name: &str) -> Result<Command> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let path = own.with_file_name(name);
    ensure!(path.exists(), "{} is missing: `cargo build --workspace --bins` builds it", path.display());
    let mut command = Command::new(path);
    // Child processes are killed if this process ends for any reason.
    command.kill_on_drop(true).stdin(Stdio::null());
    Ok(command)
}

/// Synthesizes the data set, with `more` options, unless it exists.
///
/// # Errors
/// It cannot be synthesized, or the existing one has another number of images.
pub async fn synthesize(world: &Path, images: u32, seed: u64, more: &[&str]) -> Result<()> {
    if world.join("dataset.json").exists() {
        let there = std::fs::read_dir(world.join("images")).with_context(|| world.display().to_string())?.count();
        let folder = world.parent().unwrap_or(world).display();
        ensure!(there == images as usize, "the world in {folder} has {there} images, not {images}: remove that folder");
        return Ok(());
    }
    let mut command = program("worker")?;
    command.arg("synthesize").arg("--out").arg(world);
    command.args(["--images", &images.to_string(), "--seed", &seed.to_string()]).args(more);
    let status = command.status().await.context("cannot run worker synthesize")?;
    ensure!(status.success(), "worker synthesize failed");
    Ok(())
}

struct Process {
    name: String,
    child: Child,
    stdout: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Process {
    fn start(name: String, mut command: Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut child =
            command.stdout(Stdio::piped()).stderr(file).spawn().with_context(|| format!("cannot start {name}"))?;
        let stdout = child.stdout.take().context("stdout was asked for")?;
        Ok(Self { name, child, stdout: BufReader::new(stdout), log })
    }

    /// The output of the process, once it has ended successfully.
    async fn finish(mut self) -> Result<String> {
        let mut printed = String::new();
        self.stdout.read_to_string(&mut printed).await?;
        let status = self.child.wait().await?;
        self.check(status)?;
        Ok(printed)
    }

    fn check(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("it said nothing");
        bail!("{} ended with {status}: {last} (all of it: {})", self.name, self.log.display())
    }
}

/// A coordinator and its workers.
pub struct Cluster {
    coordinator: Process,
    workers: Vec<Process>,
    url: String,
}

impl Cluster {
    /// Starts a coordinator on free ports, and as many workers as the run takes.
    ///
    /// # Errors
    /// A program is missing or does not start.
    pub async fn start(config: &Path, run: &RunFile) -> Result<Self> {
        let mut command = program("coordinator")?;
        command.arg("serve").arg("--config").arg(config).args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let mut coordinator = Process::start("coordinator".to_owned(), command, &run.output)?;
        let mut line = String::new();
        coordinator.stdout.read_line(&mut line).await?;
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("grpc="));
        let Some(address) = address else {
            let status = coordinator.child.wait().await?;
            coordinator.check(status)?;
            bail!("the coordinator said {line:?} where its address was expected");
        };
        let url = format!("http://{address}");
        println!("coordinator: {}", line.trim());
        let workers = (0..run.workers.max)
            .map(|rank| {
                let mut command = program("worker")?;
                command.args(["join", "--coordinator", &url, "--rank", &rank.to_string(), "--threads", "1"]);
                command.env("OMP_NUM_THREADS", "1");
                Process::start(format!("worker-{rank}"), command, &run.output)
            })
            .collect::<Result<_>>()?;
        Ok(Self { coordinator, workers, url })
    }

    /// Shows progress until the run is complete. Returns the SHA-256 of each worker's parameters,
    /// by worker id.
    ///
    /// # Errors
    /// A process failed; the message has the end of its log.
    pub async fn watch(mut self, mut progress: Progress) -> Result<BTreeMap<String, String>> {
        let mut admin = AdminClient::connect(self.url.clone()).await.context("cannot reach the coordinator")?;
        let mut tick = tokio::time::interval(POLL);
        loop {
            tokio::select! {
                status = self.coordinator.child.wait() => {
                    self.coordinator.check(status?)?;
                    break;
                }
                _ = tick.tick() => {
                    for worker in &mut self.workers {
                        if let Some(status) = worker.child.try_wait()? {
                            worker.check(status)?;
                        }
                    }
                    // While it shuts down the coordinator may not answer; its exit is handled
                    // above.
                    if let Ok(status) = admin.status(StatusRequest {}).await {
                        progress.show(&status.into_inner());
                    }
                }
            }
        }
        progress.done();
        let mut hashes = BTreeMap::new();
        for (rank, worker) in self.workers.into_iter().enumerate() {
            let printed = worker.finish().await?;
            let hash = printed.split_whitespace().find_map(|word| word.strip_prefix("parameters_sha256="));
            hashes.insert(rank.to_string(), hash.with_context(|| format!("worker {rank} did not finish"))?.to_owned());
        }
        Ok(hashes)
    }
}
