//! `coordinator serve`: the daemon.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use checkpoint_store::{Checkpoints, Listing};
use clap::Args;
use cli_support::EndSignals;
use config::RunFile;
use object_io::Access;
use tokio::net::{TcpListener, TcpSocket};

use super::security::Admission;
use crate::{
    checkpoints::{self, Disagreement},
    journal::{self, AcceptedChanges, Journal},
    random,
    run::{Outcome, Run, record::RestoredRun},
    service::{Service, StopHandle},
};

/// How long tasks in the background may take when all else is done: enough to delete an old checkpoint. Scores, which may
/// take long, are not waited for: the next coordinator has them made anew.
const LAST_TASKS: Duration = Duration::from_secs(2);
/// Connections that may wait to be accepted, as far as the system lets them: all workers may come at once.
const WAITING_CONNECTIONS: u32 = 16_384;

/// Serve a run until it is finished.
///
/// Prints one line once workers can join: `listening on grpc=ADDRESS http=ADDRESS`. On SIGTERM, SIGINT or SIGHUP the workers
/// save a checkpoint and leave; served again with the same state, the run goes on from there. A second signal ends the
/// coordinator at once.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator serve --config configs/demo.yaml --listen 0.0.0.0:7070")]
pub struct Serve {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where workers and `coordinator status` connect (gRPC); port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Where the page, /metrics, /healthz and /readyz are served, to everybody who can reach it: names, counts, scores, hosts,
    /// captions and images of the validation split. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    http: SocketAddr,
    /// Folder of the journal [default: `coordinator` in the run's output].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Continue with changed settings from the next step on, and with changed training data from a new
    /// epoch on. Without it, a run file that differs from the one in the journal is refused, and the
    /// differences are listed; a worker with other training data is sent away.
    #[arg(long)]
    accept_changes: bool,
    /// Where the journal is lost, damaged or older than the newest checkpoint, begin another one, and go on from that checkpoint. The
    /// old one is kept under another name.
    #[arg(long)]
    recover: bool,
    /// When the run is finished, go on serving the page, metrics and status, until SIGTERM or `coordinator stop`.
    #[arg(long)]
    stay: bool,
    #[command(flatten)]
    admission: Admission,
}

impl Serve {
    /// Serves.
    pub fn run(self) -> anyhow::Result<()> {
        let (file, warnings) = RunFile::load_with_warnings(&self.config)?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        // Every worker takes one for its connection.
        cli_support::raise_open_files_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(self.serve(file));
        runtime.shutdown_timeout(LAST_TASKS);
        result
    }

    async fn serve(self, file: RunFile) -> anyhow::Result<()> {
        let security = self.admission.prepare(self.listen)?;
        let scoring = super::validate::metrics(&file.scoring)?;
        // Before anything is written: a second coordinator by mistake must not leave traces.
        let grpc = bind(self.listen, "--listen")?;
        let http = bind(self.http, "--http")?;
        let state = self.state.unwrap_or_else(|| file.output.join("coordinator"));
        let accept = if self.accept_changes { AcceptedChanges::NextStep } else { AcceptedChanges::Free };
        let opening = StorageOptions { file: file.clone(), state: state.clone(), accept, recover: self.recover };
        let OpenedStorage { journal, restored, checkpoints } =
            tokio::task::spawn_blocking(move || opening.open()).await??;
        check_captions(&file)?;
        if restored.finished {
            tracing::info!(state = %state.display(), "the run is finished already; --stay goes on serving its page");
        } else if restored.last_generation > 0 {
            tracing::info!(at = %restored.committed, generation = restored.last_generation, "going on with the run");
        }
        let addresses = format!("listening on grpc={} http={}", grpc.local_addr()?, http.local_addr()?);
        let term = random::number().context("no random numbers")?;
        let run = Run::new(file.clone(), restored, term);
        let run = if self.accept_changes { run.exchanging_data() } else { run };
        let service =
            Service { file, run, journal, state, checkpoints, scoring, grpc, http, security, stay: self.stay };
        let (stop, served) = service.start();
        tokio::spawn(signals(stop)?);
        // The parent process may not read the output.
        cli_support::tell(format_args!("{addresses}"));
        match served.await? {
            Outcome::Finished | Outcome::Stopped => Ok(()),
            Outcome::Failed(reason) => Err(anyhow!(reason)),
        }
    }
}

/// A journal and checkpoints that are to be opened.
struct StorageOptions {
    file: RunFile,
    /// The folder of the journal.
    state: PathBuf,
    accept: AcceptedChanges,
    recover: bool,
}

/// A journal, what is in it, and the checkpoints that go with it.
struct OpenedStorage {
    journal: Journal,
    restored: RestoredRun,
    checkpoints: Checkpoints,
}

impl StorageOptions {
    /// Opens both, or makes them for a new run. Of what is there nothing is changed before it is known to belong together.
    fn open(&self) -> anyhow::Result<OpenedStorage> {
        let (checkpoints, mut found) = open(&self.file.checkpoint_place())?;
        let stamp = |name: &str| checkpoints.stamp(name);
        let agreed = |journal: Journal| {
            let restored = journal.restore()?;
            let left = checkpoints::agree(&self.file, &journal, &restored, &found, stamp)?;
            Ok((journal, restored, left))
        };
        let (journal, mut restored, left) = match self.journal(&found).and_then(agreed) {
            Err(problem) if self.recover && is_recoverable(&problem) => {
                let recovery = checkpoints::recovery(&self.file, &found, stamp)?;
                let journal = Journal::recover(&self.state, &self.file, &recovery)?;
                let checkpoint = &recovery.newest.checkpoint;
                tracing::warn!(
                    checkpoint,
                    "the journal is begun anew, and the run goes on from a checkpoint: {problem:#}"
                );
                agreed(journal)?
            }
            opened => opened.with_context(|| format!("state {}", self.state.display()))?,
        };
        found.sealed.retain(|name| !left.contains(name));
        checkpoints::reconcile(&self.file, &mut restored, found);
        Ok(OpenedStorage { journal, restored, checkpoints })
    }

    fn journal(&self, found: &Listing) -> anyhow::Result<Journal> {
        if !Journal::exists(&self.state)
            && let Some(first) = checkpoints::own(&self.file, found).first()
        {
            return Err(NoJournal { first: (*first).clone(), place: self.file.checkpoint_place() }.into());
        }
        let journal = Journal::open_accepting(&self.state, &self.file, self.accept);
        if let Err(journal::Error::Settings(refused)) = &journal {
            // The list does not fit the one line of an error.
            cli_support::complain(format_args!("{}", refused.explanation()));
        }
        Ok(journal?)
    }
}

/// Checkpoints without a journal.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no journal, and {place} holds checkpoints, such as {first}: serve with the --state of the run that wrote them, with \
     --recover to go on from the newest of them, or choose another output"
)]
struct NoJournal {
    /// One of them.
    first: String,
    /// Where they are.
    place: String,
}

/// Whether a new journal puts right what is wrong with the one that there is.
fn is_recoverable(problem: &anyhow::Error) -> bool {
    problem.is::<NoJournal>()
        || problem.is::<Disagreement>()
        || matches!(problem.downcast_ref(), Some(journal::Error::Damaged(_)))
}

/// Checks that the captions of evaluations can be saved, before hours are spent on what they are of.
///
/// # Errors
/// Their folder cannot be made or written to.
fn check_captions(file: &RunFile) -> anyhow::Result<()> {
    checkpoint_store::check_writable(&file.captions_folder().to_string_lossy(), &Access::environment())
        .context("captions of evaluations")
}

/// Where checkpoints are kept, which must be of use before anybody trains, and what is there.
fn open(place: &str) -> anyhow::Result<(Checkpoints, Listing)> {
    let access = Access::environment();
    let opened = Checkpoints::open(place, &access).and_then(|checkpoints| {
        checkpoint_store::check_writable(place, &access)?;
        let found = checkpoints.list()?;
        Ok((checkpoints, found))
    });
    opened.context("checkpoints")
}

fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    match listen(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!("{address} is in use: stop what listens there, or choose another {option} (port 0 takes a free one)")
        }
        Err(error) => Err(error).with_context(|| format!("{option} {address}")),
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As `TcpListener::bind` does: a restarted coordinator does not have to wait for the old one's
    // connections.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(WAITING_CONNECTIONS)
}

/// Stops the coordinator on the first signal, and the process on the second.
fn signals(stop: StopHandle) -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = EndSignals::listen()?;
    Ok(async move {
        signals.asked().await;
        stop.stop().await;
        signals.asked_again().await;
        // As a shell reports a process that SIGINT ended.
        std::process::exit(130);
    })
}
