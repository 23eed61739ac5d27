//! The session with the coordinator: joins, passes directives to the training thread and its
//! reports back, sends heartbeats, reconnects when the connection breaks, and leaves on a shutdown
//! signal.
//!
//! ```text
//!             joined            finished, left or failed
//!   joining ---------> session --------------------------> exit
//!      ^                  |
//!      '------------------'
//!        connection lost: the training thread releases the generation, and keeps the state
//! ```
//!
//! | file | content |
//! |---|---|
//! | `join_options` | the options of `worker join` |
//! | `coordinator_client` | the gRPC client, and its limits on the coordinator's messages |
//! | `joining` | the Join call: reserves a worker id, with retries |
//! | `membership` | checks the response to Join |
//! | `session_stream` | one session: the bidirectional gRPC stream of reports and directives |
//! | `training_thread` | the handle of the training thread |
//! | `shutdown` | SIGTERM, SIGINT and SIGHUP |

mod coordinator_client;
mod join_options;
mod joining;
mod membership;
mod session_stream;
mod shutdown;
mod training_thread;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use tokio::sync::watch;

use crate::collective::TcpStore;
use crate::trainer::TrainerExit;
pub use join_options::{JoinOptions, RequestedWorkerId, WorkerIdSource};
use joining::{RetryPolicy, WorkerIdReservation};
use membership::Membership;
use session_stream::SessionEnd;
use training_thread::{ReleaseOutcome, TrainingThread, training_thread_panicked};

/// After a session shorter than this the worker waits before it joins again.
const MIN_SESSION_DURATION: Duration = Duration::from_secs(1);

/// How a worker ends without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerExit {
    /// The run is complete.
    Finished,
    /// The worker left before the run was complete: after a shutdown signal, a drain or the
    /// coordinator's stop. No state is lost.
    Left,
}

/// Runs a worker until the run is complete or the process gets a shutdown signal.
///
/// # Errors
/// The coordinator refuses this worker or cannot be reached, or the worker cannot continue.
pub async fn run_worker(options: JoinOptions) -> Result<WorkerExit> {
    run_until(options, shutdown::listen()?).await
}

/// As [`run_worker`], with `shutdown` as the shutdown signal.
async fn run_until(options: JoinOptions, mut shutdown: watch::Receiver<bool>) -> Result<WorkerExit> {
    let join_and_load = async {
        let host = match options.host {
            Some(host) => host,
            None => joining::local_address_of_route(&options).await?,
        };
        let reservation = joining::join(&options, host).await?;
        let tcp_store = TcpStore::serve(host)?;
        let training = tokio::select! {
            training = TrainingThread::start(&reservation.membership, options.device, host) => training?,
            never = joining::renew(&options, &reservation) => match never {},
        };
        anyhow::Ok((host, reservation.membership, tcp_store, training))
    };
    let (host, membership, tcp_store, mut training) = tokio::select! {
        loaded = join_and_load => loaded?,
        // The worker is not a member yet: it can leave at once.
        Ok(_) = shutdown.wait_for(|requested| *requested) => return Ok(WorkerExit::Left),
    };
    let exit = run_sessions(&options, host, membership, tcp_store, &mut training, &shutdown).await;
    training.wait_for_saves().await;
    exit
}

/// Runs one session after another until the worker finishes, leaves or fails.
async fn run_sessions(
    options: &JoinOptions,
    host: IpAddr,
    mut membership: Membership,
    mut tcp_store: TcpStore,
    training: &mut TrainingThread,
    shutdown: &watch::Receiver<bool>,
) -> Result<WorkerExit> {
    // One policy for consecutive sessions that are shorter than `MIN_SESSION_DURATION`.
    let mut retry_policy = RetryPolicy::new(options);
    loop {
        let session_started_at = Instant::now();
        let (token, address) = (membership.session_token.clone(), tcp_store.address().to_owned());
        let attach = training.protocol.attach(token, address, training.data_set.clone());
        match session_stream::run_session(&options.coordinator, &membership, attach, training, shutdown.clone()).await {
            SessionEnd::Finished => return print_result(membership.worker_id, training).await,
            SessionEnd::Left(reason) => {
                tracing::info!(worker_id = membership.worker_id, reason, "left");
                cli_support::print_line(format_args!("left rank={}", membership.worker_id));
                return Ok(WorkerExit::Left);
            }
            SessionEnd::Failed(reason) => return Err(anyhow!(reason)),
            SessionEnd::Disconnected(reason) => {
                tracing::warn!("lost the connection to the coordinator ({reason}): keeping the state and rejoining");
                if training.release_generation(membership.heartbeat_timeout).await? == ReleaseOutcome::Finished {
                    return print_result(membership.worker_id, training).await;
                }
                let reservation =
                    rejoin(options, host, &membership, &mut retry_policy, session_started_at, &reason).await?;
                if let Some(reason) = training.apply_settings(&reservation.membership) {
                    tracing::info!(reason, "loading data and models again");
                    tcp_store = reload_data_and_models(options, host, &reservation, training).await?;
                }
                membership = reservation.membership;
            }
            SessionEnd::StateRejected(reason) => {
                tracing::warn!("discarding the state, and joining again without one: {reason}");
                let reservation =
                    rejoin(options, host, &membership, &mut retry_policy, session_started_at, &reason).await?;
                tcp_store = reload_data_and_models(options, host, &reservation, training).await?;
                membership = reservation.membership;
            }
        }
    }
}

/// Joins again after the end of a session. Waits first if the session was short. `reason` is why
/// the session ended, for messages.
async fn rejoin<'a>(
    options: &'a JoinOptions,
    host: IpAddr,
    membership: &Membership,
    retry_policy: &mut RetryPolicy<'a>,
    session_started_at: Instant,
    reason: &str,
) -> Result<WorkerIdReservation> {
    match session_started_at.elapsed() < MIN_SESSION_DURATION {
        true => retry_policy.wait_before_retry(reason).await?,
        false => *retry_policy = RetryPolicy::new(options),
    }
    // The join has a join timeout of its own.
    let started_at = Instant::now();
    let reservation = joining::rejoin(options, host, membership.worker_id, membership.heartbeat_timeout).await?;
    retry_policy.exclude(started_at.elapsed());
    Ok(reservation)
}

/// Loads data and models again, and renews the reservation meanwhile. Returns a new rendezvous
/// store, because the old one may have entries of generations with the same numbers.
async fn reload_data_and_models(
    options: &JoinOptions,
    host: IpAddr,
    reservation: &WorkerIdReservation,
    training: &mut TrainingThread,
) -> Result<TcpStore> {
    tokio::select! {
        restarted = training.restart(&reservation.membership, options.device, host) => restarted?,
        never = joining::renew(options, reservation) => match never {},
    }
    TcpStore::serve(host)
}

/// Waits for the training thread's result of a complete run, and prints it.
async fn print_result(worker_id: u32, training: &mut TrainingThread) -> Result<WorkerExit> {
    let TrainerExit::Finished(sha256) = training.wait_for_exit().await else {
        return Err(training_thread_panicked());
    };
    cli_support::print_line(format_args!("finished rank={worker_id} parameters_sha256={sha256}"));
    Ok(WorkerExit::Finished)
}

#[cfg(test)]
mod tests;
