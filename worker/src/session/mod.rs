//! The session with the coordinator: joins, passes directives to the training thread and its
//! reports back, sends heartbeats, reconnects when the connection breaks, and leaves on a shutdown
//! signal.
//!
//! ```text
//!   joining ---> stream ----------------> over: finished, left, failed
//!      ^            | connection lost
//!      '------------' (training: release the generation, keep the state)
//! ```

mod joining;
mod leaving;
mod place;
mod stream;
mod training;

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use proto::v1::{self, coordinator_client::CoordinatorClient};
use tch::Device;
use tokio::sync::watch;
use transport::{Channel, Link};

use crate::collective::Store;
use crate::trainer::End;
use joining::{Reservation, RetryPolicy};
use place::Membership;
use stream::SessionEnd;
use training::{ReleasedState, Training, training_died};

/// Maximal number of characters of the coordinator's reasons that are shown.
const MAX_REASON_CHARS: usize = 1_000;
/// After a session shorter than this the worker waits before it joins again.
const MIN_SESSION: Duration = Duration::from_secs(1);
/// Maximal size of a message from a coordinator, in bytes: twice that of a run file, which is the
/// largest part of any message.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Maximal number of reports that wait for the network; the training thread waits beyond it.
const REPORTS: usize = 256;

/// The options of `worker join`.
pub struct Options {
    /// The connection settings for the coordinator.
    pub coordinator: Link,
    /// The wanted id; none to let the coordinator choose.
    pub rank: Option<RequestedId>,
    /// The device to compute on.
    pub device: Device,
    /// The address for other workers; none for the address of the route to the coordinator.
    pub host: Option<IpAddr>,
    /// How long to retry when the coordinator does not answer.
    pub patience: Duration,
}

/// The id that a worker asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedId {
    /// The id.
    pub rank: u32,
    /// The source of this setting, for messages.
    pub source: RankSource,
}

/// The source of the wanted id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankSource {
    /// On the command line.
    Flag,
    /// In an environment variable of this name.
    Variable(&'static str),
}

impl fmt::Display for RankSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "--rank",
            Self::Variable(name) => name,
        })
    }
}

/// How a worker ends without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerExit {
    /// The run is complete.
    Finished,
    /// The worker left before that: on a shutdown signal, a drain or the coordinator's stop. No
    /// state is lost.
    Left,
}

/// Runs a worker until the run is complete or the process gets a shutdown signal.
///
/// # Errors
/// The reason why this worker cannot continue, in one line.
pub async fn run(options: Options) -> Result<WorkerExit, String> {
    run_until(options, leaving::wish()?).await
}

/// As [`run`], with `wish` as the shutdown signal.
async fn run_until(options: Options, mut wish: watch::Receiver<bool>) -> Result<WorkerExit, String> {
    let begin = async {
        let host = match options.host {
            Some(host) => host,
            None => joining::route_to(&options).await?,
        };
        let reservation = joining::join(&options, host).await?;
        let store = Store::serve(host)?;
        let training = tokio::select! {
            training = Training::start(&reservation.place, options.device, host) => training?,
            never = joining::renew(&options, &reservation) => match never {},
        };
        Ok::<_, String>((host, reservation.place, store, training))
    };
    let (host, place, store, mut training) = tokio::select! {
        begun = begin => begun?,
        // The worker is no member yet: it can leave at once.
        Ok(_) = wish.wait_for(|wish| *wish) => return Ok(WorkerExit::Left),
    };
    let over = take_part(&options, host, place, store, &mut training, &wish).await;
    training.saved().await;
    // libtorch's messages have several lines.
    over.map_err(|problem| problem.replace(['\n', '\r'], " "))
}

/// Runs sessions until the worker's part in the run ends.
async fn take_part(
    options: &Options,
    host: IpAddr,
    mut place: Membership,
    mut store: Store,
    training: &mut Training,
    wish: &watch::Receiver<bool>,
) -> Result<WorkerExit, String> {
    let mut holds = None;
    // Retries over several sessions, until one of them lasts.
    let mut attempts = RetryPolicy::new(options);
    loop {
        let begun = Instant::now();
        let attach = v1::Attach {
            session_token: place.session_token.clone(),
            store_address: store.address().to_owned(),
            data_set: Some(training.data_set.clone()),
            holds,
            run_id: place.run_id.clone(),
            generation: training.generation(),
            term: training.term(),
        };
        match stream::serve(&options.coordinator, &place, attach, training, wish.clone()).await {
            SessionEnd::Finished => return finish(place.rank, training).await,
            SessionEnd::Left(reason) => {
                tracing::info!(rank = place.rank, reason, "left");
                cli_support::tell(format_args!("left rank={}", place.rank));
                return Ok(WorkerExit::Left);
            }
            SessionEnd::Failed(reason) => return Err(reason),
            SessionEnd::Disconnected(reason) => {
                tracing::warn!("connection to the coordinator lost ({reason}): holding the state, and rejoining");
                let heartbeat_timeout = place.heartbeat_timeout;
                holds = match training.let_go(heartbeat_timeout).await? {
                    ReleasedState::State(position) => position,
                    ReleasedState::Result => return finish(place.rank, training).await,
                };
                let reservation = come_back(options, host, &place, &mut attempts, begun, &reason).await?;
                if let Err(reason) = training.take_settings(&reservation.place) {
                    tracing::info!(reason, "loading data and models again");
                    store = begin_anew(options, host, &reservation, training).await?;
                    holds = None;
                }
                place = reservation.place;
            }
            SessionEnd::Disowned(reason) => {
                tracing::warn!("giving up the state that was held, and joining anew: {reason}");
                let reservation = come_back(options, host, &place, &mut attempts, begun, &reason).await?;
                store = begin_anew(options, host, &reservation, training).await?;
                holds = None;
                place = reservation.place;
            }
        }
    }
}

/// Joins again after the session that began at `begun`; at once if that session lasted.
async fn come_back<'a>(
    options: &'a Options,
    host: IpAddr,
    place: &Membership,
    attempts: &mut RetryPolicy<'a>,
    begun: Instant,
    reason: &str,
) -> Result<Reservation, String> {
    match begun.elapsed() < MIN_SESSION {
        true => attempts.retry(reason).await?,
        false => *attempts = RetryPolicy::new(options),
    }
    let asked = Instant::now();
    let reservation = joining::rejoin(options, host, place.rank, place.heartbeat_timeout).await?;
    attempts.leave_out(asked.elapsed());
    Ok(reservation)
}

/// Loads data and models again while the reservation is kept. Uses a new rendezvous store, because
/// the old one may have entries of generations with the same numbers.
async fn begin_anew(
    options: &Options,
    host: IpAddr,
    reservation: &Reservation,
    training: &mut Training,
) -> Result<Store, String> {
    tokio::select! {
        restarted = training.restart(&reservation.place, options.device, host) => restarted?,
        never = joining::renew(options, reservation) => match never {},
    }
    Store::serve(host)
}

async fn finish(rank: u32, training: &mut Training) -> Result<WorkerExit, String> {
    let End::Finished(sha256) = training.end().await else { return Err(training_died()) };
    cli_support::tell(format_args!("finished rank={rank} parameters_sha256={sha256}"));
    Ok(WorkerExit::Finished)
}

fn client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests;
