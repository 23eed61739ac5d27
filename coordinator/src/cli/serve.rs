//! `coordinator serve`: runs the daemon.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, anyhow, bail};
use checkpoint_store::{Checkpoints, Listing};
use clap::Args;
use cli_support::ShutdownSignals;
use config::RunFile;
use dico_engine::{Engine, Outcome, restored::RestoredRun};
use journal::{AcceptedChanges, Journal};
use object_storage::Access;
use tokio::net::{TcpListener, TcpSocket};

use super::security_args::SecurityArgs;
use crate::{
    checkpoints::{self, JournalMismatchError},
    random_ids,
    service::{Service, StopHandle},
};

/// How long the coordinator waits for its background tasks before it exits: enough to delete an old
/// checkpoint. The computation of an evaluation's scores may take longer and is then aborted. The
/// next coordinator computes these scores again.
const BACKGROUND_TASK_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of connections that may wait to be accepted, because all workers may connect at once.
/// The system may limit it further.
const LISTEN_BACKLOG: u32 = 16_384;

/// Serve a run until it is finished.
///
/// Reads the run file, opens the journal and the checkpoints, and directs the workers that join.
/// Prints one line when workers can join: `listening on grpc=ADDRESS http=ADDRESS`. On SIGTERM,
/// SIGINT or SIGHUP the workers save a checkpoint and leave; the same command continues the run
/// from there. A second signal ends the coordinator at once.
///
/// The exit status is 0 if the run is finished or was stopped, 1 on errors and if the run failed,
/// and 130 after a second signal.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator serve --config configs/demo.yaml --listen 0.0.0.0:7070")]
pub struct ServeCommand {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Address for workers and commands such as `coordinator status` (gRPC). Port 0 selects a free
    /// port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Address of the web page, /metrics, /healthz and /readyz. Every client that can reach it can
    /// read names, counts, scores, hosts, captions and images of the validation split. Port 0
    /// selects a free port.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7071")]
    http: SocketAddr,
    /// Folder of the journal [default: `coordinator` in the run's output].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Continue with changed settings from the next step on, and with changed training data from a
    /// new epoch on. Without this option, a run file that differs from the one in the journal is
    /// refused, the differences are listed, and a worker with other training data is refused.
    #[arg(long)]
    accept_changes: bool,
    /// If the journal is lost, damaged or older than the newest checkpoint, create a new journal
    /// and resume from that checkpoint. The old journal is kept under another name.
    #[arg(long)]
    recover: bool,
    /// When the run is finished, continue to serve the web page, metrics and status until SIGTERM
    /// or `coordinator stop`.
    #[arg(long)]
    stay: bool,
    #[command(flatten)]
    security: SecurityArgs,
}

impl ServeCommand {
    /// Serves the run.
    pub fn run(self) -> anyhow::Result<()> {
        let (file, warnings) = RunFile::load_with_warnings(&self.config)?;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        // The connection of each worker needs an open file.
        cli_support::raise_open_files_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let result = runtime.block_on(self.serve(file));
        runtime.shutdown_timeout(BACKGROUND_TASK_TIMEOUT);
        result
    }

    async fn serve(self, file: RunFile) -> anyhow::Result<()> {
        let security = self.security.prepare(self.listen)?;
        let scoring = run_assets::open_metrics(&file.scoring)?;
        // Bind before anything is written, so that an accidental second coordinator changes
        // nothing.
        let grpc = bind(self.listen, "--listen")?;
        let http = bind(self.http, "--http")?;
        let journal_folder = self.state.unwrap_or_else(|| file.journal_folder());
        let accept = if self.accept_changes { AcceptedChanges::NextStep } else { AcceptedChanges::Free };
        let options = StorageOptions {
            file: file.clone(),
            journal_folder: journal_folder.clone(),
            accept,
            recover: self.recover,
        };
        let OpenedStorage { journal, restored, checkpoints } =
            tokio::task::spawn_blocking(move || options.open()).await??;
        check_captions_folder(&file)?;
        if restored.is_finished {
            tracing::info!(state = %journal_folder.display(), "the run is already finished; with --stay its web page is served");
        } else if restored.last_generation > 0 {
            tracing::info!(at = %restored.committed, generation = restored.last_generation, "resuming the run");
        }
        let addresses = format!("listening on grpc={} http={}", grpc.local_addr()?, http.local_addr()?);
        let term = random_ids::random_u64().context("no random numbers")?;
        let engine = Engine::new(file.clone(), restored, term);
        let engine = if self.accept_changes { engine.accepting_changed_data() } else { engine };
        let service = Service {
            file,
            engine,
            journal,
            journal_folder,
            checkpoints,
            scoring,
            grpc,
            http,
            security,
            stay: self.stay,
        };
        let (stop, served) = service.start();
        tokio::spawn(stop_on_signals(stop)?);
        // The parent process may have closed standard output.
        cli_support::print_line(format_args!("{addresses}"));
        match served.await? {
            Outcome::Finished | Outcome::Stopped => Ok(()),
            Outcome::Failed(reason) => Err(anyhow!(reason)),
        }
    }
}

/// How to open the journal and the checkpoints.
struct StorageOptions {
    file: RunFile,
    journal_folder: PathBuf,
    accept: AcceptedChanges,
    recover: bool,
}

/// An open journal, the run as restored from it, and the checkpoints of the run.
struct OpenedStorage {
    journal: Journal,
    restored: RestoredRun,
    checkpoints: Checkpoints,
}

impl StorageOptions {
    /// Opens journal and checkpoints, or creates them for a new run. Checks that they belong
    /// together.
    fn open(&self) -> anyhow::Result<OpenedStorage> {
        let (checkpoints, mut listing) = open_checkpoints(&self.file.checkpoint_location())?;
        let read_metadata = |name: &str| checkpoints.metadata(name);
        let restore = |journal: Journal| {
            let restored = journal.restore()?;
            let ignored = checkpoints::check_against_journal(&self.file, &journal, &restored, &listing, read_metadata)?;
            Ok((journal, restored, ignored))
        };
        let (journal, mut restored, ignored) = match self.open_journal(&listing).and_then(restore) {
            Err(error) if self.recover && is_recoverable(&error) => {
                let recovery = checkpoints::find_recovery_checkpoints(&self.file, &listing, read_metadata)?;
                let journal = Journal::recover(&self.journal_folder, &self.file, &recovery)?;
                let checkpoint = &recovery.newest.name;
                tracing::warn!(
                    checkpoint,
                    "the journal was replaced by a new one, and the run resumes from a checkpoint: {error:#}"
                );
                restore(journal)?
            }
            opened => opened.with_context(|| format!("state {}", self.journal_folder.display()))?,
        };
        // Checkpoints from before a recovery would otherwise be deleted as unfinished.
        listing.sealed.retain(|name| !ignored.contains(name));
        checkpoints::reconcile(&self.file, &mut restored, listing);
        Ok(OpenedStorage { journal, restored, checkpoints })
    }

    fn open_journal(&self, listing: &Listing) -> anyhow::Result<Journal> {
        if !Journal::exists(&self.journal_folder)
            && let Some(first) = checkpoints::checkpoint_names_of_run(&self.file, listing).first()
        {
            return Err(NoJournalError { first: (*first).clone(), location: self.file.checkpoint_location() }.into());
        }
        let journal = Journal::open_with_changes(&self.journal_folder, &self.file, self.accept);
        if let Err(journal::Error::Settings(refused)) = &journal {
            // An error is one line. The list of changes has several.
            cli_support::print_error(format_args!("{}", refused.explanation()));
        }
        Ok(journal?)
    }
}

/// The run has checkpoints, but no journal.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no journal, and {location} holds checkpoints, such as {first}: serve with the --state of the run that wrote them, \
     with --recover to resume from the newest of them, or choose another output"
)]
struct NoJournalError {
    /// The name of one of the checkpoints.
    first: String,
    /// The folder or URL of the checkpoints.
    location: String,
}

/// Whether `--recover` creates a new journal after this error.
fn is_recoverable(error: &anyhow::Error) -> bool {
    error.is::<NoJournalError>()
        || error.is::<JournalMismatchError>()
        || matches!(error.downcast_ref(), Some(journal::Error::Damaged(_)))
}

/// Checks that the captions of evaluations can be saved. The first evaluation may be hours later,
/// and the run would be paused then.
///
/// # Errors
/// Their folder cannot be created or is not writable.
fn check_captions_folder(file: &RunFile) -> anyhow::Result<()> {
    checkpoint_store::check_writable(&file.captions_folder().to_string_lossy(), &Access::from_environment())
        .context("captions of evaluations")
}

/// Opens and lists the checkpoints. Checks that new ones can be written, before the run trains.
fn open_checkpoints(location: &str) -> anyhow::Result<(Checkpoints, Listing)> {
    let access = Access::from_environment();
    let opened = Checkpoints::open(location, &access).and_then(|checkpoints| {
        checkpoint_store::check_writable(location, &access)?;
        let listing = checkpoints.list()?;
        Ok((checkpoints, listing))
    });
    opened.context("checkpoints")
}

/// Listens on the address of an option.
fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    match listen(address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "{address} is in use: stop the process that listens there, or choose another {option} (port 0 selects a free port)"
            )
        }
        Err(error) => Err(error).with_context(|| format!("{option} {address}")),
    }
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // As in `TcpListener::bind`: a restarted coordinator can bind although connections of the
    // previous one are in the state TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

/// Stops the coordinator at the first signal, and ends the process at the second.
fn stop_on_signals(stop: StopHandle) -> std::io::Result<impl Future<Output = ()>> {
    let mut signals = ShutdownSignals::listen()?;
    Ok(async move {
        signals.received().await;
        stop.stop().await;
        signals.received_again().await;
        // The status by which shells report a process that SIGINT has ended.
        std::process::exit(130);
    })
}
