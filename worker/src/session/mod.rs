//! The connection to the coordinator: joins, passes directives to the training thread and reports back, keeps the heartbeat
//! going, comes back when the connection breaks, and leaves when the process is asked to end.
//!
//! ```text
//!   joining ---> stream ----------------> over: finished, left, failed
//!      ^            | connection lost
//!      '------------' (training: let go of the generation, hold the state)
//! ```

mod joining;
mod leaving;
mod place;
mod stream;
mod training;

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use connection::{Channel, Link};
use proto::v1::{self, coordinator_client::CoordinatorClient};
use tch::Device;
use tokio::sync::watch;

use crate::collective::Store;
use crate::trainer::End;
use joining::{Attempts, Reservation};
use place::Place;
use stream::Over;
use training::{Held, Training, training_died};

/// Most characters of what the coordinator gives as a reason that are shown.
const MAX_REASON_CHARS: usize = 1_000;
/// A session that ends sooner was in vain: the next one is not begun at once.
const MIN_SESSION: Duration = Duration::from_secs(1);
/// Longest message of a coordinator, in bytes: twice as long as the longest run file, which is the longest part of any.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Reports that may wait for the network before the training thread does.
const REPORTS: usize = 256;

/// What the command line says.
pub struct Options {
    /// The way to the coordinator.
    pub coordinator: Link,
    /// Wanted identity; the coordinator's choice if there is none.
    pub rank: Option<WantedRank>,
    /// Where to compute.
    pub device: Device,
    /// Address for other workers.
    pub host: Option<IpAddr>,
    /// How long to go on trying to reach the coordinator.
    pub patience: Duration,
}

/// The identity that a worker asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedRank {
    /// The identity.
    pub rank: u32,
    /// Where it is said.
    pub source: RankSource,
}

/// Where the rank is said that a worker asks for.
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

/// How a worker's part in a run ends well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The run is complete.
    Finished,
    /// Before that this process was asked to end, this worker was drained, or the coordinator stopped; no state was lost.
    Left,
}

/// Takes part in the run until it is complete, or this process is asked to end.
///
/// # Errors
/// One line that says why this worker cannot go on.
pub async fn run(options: Options) -> Result<Ending, String> {
    run_until(options, leaving::wish()?).await
}

/// The same, until `wish` turns true at the latest.
async fn run_until(options: Options, mut wish: watch::Receiver<bool>) -> Result<Ending, String> {
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
        // Nobody depends on it yet.
        Ok(_) = wish.wait_for(|wish| *wish) => return Ok(Ending::Left),
    };
    let over = take_part(&options, host, place, store, &mut training, &wish).await;
    training.saved().await;
    // libtorch's words may be in it.
    over.map_err(|problem| problem.replace(['\n', '\r'], " "))
}

/// Session after session, until there is nothing left to do.
async fn take_part(
    options: &Options,
    host: IpAddr,
    mut place: Place,
    mut store: Store,
    training: &mut Training,
    wish: &watch::Receiver<bool>,
) -> Result<Ending, String> {
    let mut holds = None;
    // To have a session that lasts.
    let mut attempts = Attempts::new(options);
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
            Over::Finished => return finish(place.rank, training).await,
            Over::Left(reason) => {
                tracing::info!(rank = place.rank, reason, "left");
                terminal::tell(format_args!("left rank={}", place.rank));
                return Ok(Ending::Left);
            }
            Over::Failed(reason) => return Err(reason),
            Over::Disconnected(reason) => {
                tracing::warn!("connection to the coordinator lost ({reason}): holding the state, and rejoining");
                let lost_after = place.lost_after;
                holds = match training.let_go(lost_after).await? {
                    Held::State(position) => position,
                    Held::Result => return finish(place.rank, training).await,
                };
                let reservation = come_back(options, host, &place, &mut attempts, begun, &reason).await?;
                if let Err(reason) = training.take_settings(&reservation.place) {
                    tracing::info!(reason, "loading data and models again");
                    store = begin_anew(options, host, &reservation, training).await?;
                    holds = None;
                }
                place = reservation.place;
            }
            Over::Disowned(reason) => {
                tracing::warn!("giving up the state that was held, and joining anew: {reason}");
                let reservation = come_back(options, host, &place, &mut attempts, begun, &reason).await?;
                store = begin_anew(options, host, &reservation, training).await?;
                holds = None;
                place = reservation.place;
            }
        }
    }
}

/// Asks for the place that this worker had in the session that was `begun` then; soon again only where that has lasted.
async fn come_back<'a>(
    options: &'a Options,
    host: IpAddr,
    place: &Place,
    attempts: &mut Attempts<'a>,
    begun: Instant,
    reason: &str,
) -> Result<Reservation, String> {
    match begun.elapsed() < MIN_SESSION {
        true => attempts.retry(reason).await?,
        false => *attempts = Attempts::new(options),
    }
    let asked = Instant::now();
    let reservation = joining::rejoin(options, host, place.rank, place.lost_after).await?;
    attempts.leave_out(asked.elapsed());
    Ok(reservation)
}

/// Loads data and models again while the place is kept. In the old store generations of the same numbers may have met.
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

async fn finish(rank: u32, training: &mut Training) -> Result<Ending, String> {
    let End::Finished(sha256) = training.end().await else { return Err(training_died()) };
    terminal::tell(format_args!("finished rank={rank} parameters_sha256={sha256}"));
    Ok(Ending::Finished)
}

fn client(channel: Channel) -> CoordinatorClient<Channel> {
    CoordinatorClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests;
