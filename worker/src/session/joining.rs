//! Joining: asks the coordinator for an id, retries with backoff, and keeps the reservation while
//! data and models are loaded.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use proto::PROTOCOL_VERSION;
use proto::v1;
use tch::Device;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::place::Membership;
use super::{MAX_REASON_CHARS, Options, RankSource, RequestedId, client};

/// The first and the longest pause between attempts to reach the coordinator.
const BACK_OFF: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// Minimal interval between two heartbeats.
pub const MIN_HEARTBEAT: Duration = Duration::from_millis(10);
/// Time limit of an attempt to connect.
const CONNECT: Duration = Duration::from_secs(5);

/// A reservation of an id, which lasts as long as it is renewed.
pub struct Reservation {
    /// The coordinator's answer.
    pub place: Membership,
    /// The request to repeat for renewal.
    request: v1::JoinRequest,
}

/// The local address of the route to the coordinator. Retries, because a host name may not resolve
/// yet when a cluster starts.
pub async fn route_to(options: &Options) -> Result<IpAddr, String> {
    let mut attempts = RetryPolicy::new(options);
    loop {
        let connected = timeout(CONNECT, local_address(options.coordinator.host_and_port())).await;
        match connected.unwrap_or_else(|_| Err("no answer: timed out".to_owned())) {
            Ok(address) => return Ok(address),
            Err(problem) => attempts.retry(&problem).await?,
        }
    }
}

/// The local address of a connection to a server. If the name has several addresses, the first that
/// answers counts.
async fn local_address((host, port): (&str, u16)) -> Result<IpAddr, String> {
    let unknown = |error: std::io::Error| format!("the host name {host} is not known: {error}");
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await.map_err(unknown)?.collect();
    let silent = |error: std::io::Error| format!("no answer: {error}");
    Ok(TcpStream::connect(&addresses[..]).await.and_then(|stream| stream.local_addr()).map_err(silent)?.ip())
}

/// Asks to join until the coordinator answers. Fails on a refusal, or after `patience` without an
/// answer.
pub async fn join(options: &Options, host: IpAddr) -> Result<Reservation, String> {
    let rank_source = options.rank.map_or_else(|| "the coordinator".to_owned(), |wanted| wanted.source.to_string());
    let request = request(options, host, options.rank.map(|wanted| wanted.rank))?;
    let reservation = ask(options, request, None).await?;
    let (rank, coordinator) = (reservation.place.rank, options.coordinator.url());
    tracing::info!(rank, rank_source, coordinator, "joined");
    Ok(reservation)
}

/// Joins again under this worker's previous id. The id counts as taken until the coordinator
/// notices that the old session is lost, at most `heartbeat_timeout`. If it is still taken then, another
/// worker has it. If the coordinator chose the id, the worker accepts any other.
pub async fn rejoin(
    options: &Options,
    host: IpAddr,
    rank: u32,
    heartbeat_timeout: Duration,
) -> Result<Reservation, String> {
    let reservation =
        ask(options, request(options, host, Some(rank))?, Some(Instant::now() + 2 * heartbeat_timeout)).await?;
    tracing::info!(rank = reservation.place.rank, coordinator = options.coordinator.url(), "rejoined");
    Ok(reservation)
}

/// Renews a reservation at each heartbeat interval, while data and models are loaded. A reservation
/// that is not renewed expires; then the coordinator refuses the session, and the worker joins
/// again.
pub async fn renew(options: &Options, reservation: &Reservation) -> Infallible {
    let Membership { rank, heartbeat, heartbeat_timeout, .. } = reservation.place;
    let request = v1::JoinRequest { rank: Some(rank), waited_ms: 0, ..reservation.request.clone() };
    let mut connection = None;
    loop {
        tokio::time::sleep(heartbeat.max(MIN_HEARTBEAT)).await;
        if connection.is_none() {
            connection = options.coordinator.stay(heartbeat_timeout).await.ok();
        }
        if let Some(channel) = connection.clone()
            && client(channel).join(request.clone()).await.is_err()
        {
            connection = None;
        }
    }
}

fn request(options: &Options, host: IpAddr, rank: Option<u32>) -> Result<v1::JoinRequest, String> {
    Ok(v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        rank,
        host: host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: match options.device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".to_owned(),
        },
        idempotency_key: random_key().map_err(|error| format!("no random numbers: {error}"))?,
        waited_ms: 0,
    })
}

/// Asks until there is a final answer. Until `own_until`, a worker that rejoins attributes refusals
/// of its id to its own lost session.
async fn ask(
    options: &Options,
    mut request: v1::JoinRequest,
    own_until: Option<Instant>,
) -> Result<Reservation, String> {
    let mut attempts = RetryPolicy::new(options);
    let mut held_since = None;
    loop {
        request.waited_ms = held_since.map_or(0, |since: Instant| since.elapsed().as_millis() as u64);
        let ask = options.coordinator.ask(async |channel| client(channel).join(request.clone()).await);
        let status = match ask.await {
            Ok(answer) => {
                let place = Membership::read(answer, request.rank);
                let place = place.map_err(|violation| format!("{}: {violation}", options.coordinator.url()))?;
                return Ok(Reservation { place, request });
            }
            Err(status) => status,
        };
        match status.code() {
            // No answer, or not in time, or the connection broke. The coordinator may have been
            // suspended meanwhile, and may not have heard from the holder either.
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => held_since = None,
            // The holder of the id may be dead: the coordinator will soon know.
            Code::Aborted => {
                held_since.get_or_insert_with(Instant::now);
                attempts.ask_again(status.message()).await;
                continue;
            }
            // Another program listens on the coordinator's port: the coordinator will be back.
            Code::Internal if own_until.is_some() => {}
            Code::AlreadyExists if own_until.is_some_and(|until| Instant::now() < until) => {}
            Code::AlreadyExists if own_until.is_some() && options.rank.is_none() => request.rank = None,
            _ => return Err(refusal(options, &status)),
        }
        attempts.retry(status.message()).await?;
    }
}

/// Attempts to reach the coordinator, with exponential backoff, for `patience` at most.
pub struct RetryPolicy<'a> {
    options: &'a Options,
    /// The start, or the coordinator's last answer.
    since: Instant,
    pause: Duration,
}

impl<'a> RetryPolicy<'a> {
    /// No attempts so far.
    pub fn new(options: &'a Options) -> Self {
        Self { options, since: Instant::now(), pause: BACK_OFF[0] }
    }

    /// Waits before the next attempt, after one without an answer. Fails when `patience` has
    /// passed.
    pub async fn retry(&mut self, problem: &str) -> Result<(), String> {
        let problem = &cli_support::one_line(problem, MAX_REASON_CHARS);
        let waited = self.since.elapsed();
        // One more attempt when `patience` has passed.
        self.pause = self.pause.min(self.options.patience.saturating_sub(waited));
        if self.pause.is_zero() {
            let url = self.options.coordinator.url();
            return Err(format!("gave up on {url} after {:.0} s: {problem}", waited.as_secs_f64()));
        }
        self.wait(problem).await;
        Ok(())
    }

    /// Excludes this time from `patience`.
    pub fn leave_out(&mut self, time: Duration) {
        self.since += time;
    }

    /// Waits before the next attempt, after an answer that asks to retry.
    async fn ask_again(&mut self, reason: &str) {
        self.wait(&cli_support::one_line(reason, MAX_REASON_CHARS)).await;
        self.since = Instant::now();
    }

    async fn wait(&mut self, problem: &str) {
        let (url, pause) = (self.options.coordinator.url(), self.pause.as_secs_f64());
        tracing::warn!("cannot join {url} ({problem}); trying again in {pause:.1} s");
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(BACK_OFF[1]);
    }
}

/// The error message for a refusal, with the remedy.
fn refusal(options: &Options, status: &Status) -> String {
    let (url, reason) = (options.coordinator.url(), cli_support::one_line(status.message(), MAX_REASON_CHARS));
    match (status.code(), options.rank) {
        // The answer did not come from a coordinator.
        (Code::Internal, _) => format!("{url}: {reason}"),
        (Code::AlreadyExists, Some(RequestedId { source: RankSource::Flag, .. })) => {
            format!("{url} refused: {reason}; choose another --rank, or none to be given one")
        }
        (Code::AlreadyExists, Some(RequestedId { rank, source: RankSource::Variable(name) })) => format!(
            "{url} refused: {reason}; rank {rank} came from the environment variable {name}: pass --rank, or unset {name} to be \
             given one"
        ),
        _ => format!("{url} refused: {reason}"),
    }
}

/// 128 random bits as hex: the idempotency key of a join.
fn random_key() -> Result<String, getrandom::Error> {
    Ok(format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?))
}
