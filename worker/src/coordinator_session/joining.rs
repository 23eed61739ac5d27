//! The Join call: requests a worker id from the coordinator, retries with exponential backoff, and
//! renews the reservation while data and models are loaded.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use proto::PROTOCOL_VERSION;
use proto::v1;
use tch::Device;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::coordinator_client::{MAX_REASON_CHARS, client};
use super::join_options::{JoinOptions, RequestedWorkerId, WorkerIdSource};
use super::membership::Membership;
use crate::errors;

/// The first and the longest pause between attempts to reach the coordinator.
const INITIAL_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// Minimal interval between two heartbeats.
pub const MIN_HEARTBEAT_INTERVAL: Duration = Duration::from_millis(10);
/// Time limit of an attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A reservation of a worker id. It expires unless it is renewed.
pub struct WorkerIdReservation {
    /// The coordinator's response, validated.
    pub membership: Membership,
    /// The request to repeat for renewal.
    request: v1::JoinRequest,
}

/// The local address of the route to the coordinator. Retries, because a host name may not resolve
/// yet when a cluster starts.
///
/// # Errors
/// The coordinator cannot be reached within `join_timeout`.
pub async fn local_address_of_route(options: &JoinOptions) -> Result<IpAddr> {
    let mut retry_policy = RetryPolicy::new(options);
    loop {
        let connected = timeout(CONNECT_TIMEOUT, local_address(options.coordinator.host_and_port())).await;
        match connected.unwrap_or_else(|_| Err(anyhow!("no response: timed out"))) {
            Ok(address) => return Ok(address),
            Err(error) => retry_policy.wait_before_retry(&errors::one_line(&error)).await?,
        }
    }
}

/// The local address of a connection to a server. If the host name has several addresses, the first
/// one that accepts a connection is used.
async fn local_address((host, port): (&str, u16)) -> Result<IpAddr> {
    let addresses = tokio::net::lookup_host((host, port)).await;
    let addresses: Vec<SocketAddr> = addresses.with_context(|| format!("the host name {host} is not known"))?.collect();
    let connected = TcpStream::connect(&addresses[..]).await.and_then(|stream| stream.local_addr());
    Ok(connected.context("no response")?.ip())
}

/// Requests to join until the coordinator answers.
///
/// # Errors
/// The coordinator refuses, or does not answer within `join_timeout`.
pub async fn join(options: &JoinOptions, host: IpAddr) -> Result<WorkerIdReservation> {
    let requested = options.requested_id;
    let id_source = requested.map_or_else(|| "the coordinator".to_owned(), |requested| requested.source.to_string());
    let request = join_request(options, host, requested.map(|requested| requested.worker_id))?;
    let reservation = request_until_answered(options, request, None).await?;
    let (worker_id, coordinator) = (reservation.membership.worker_id, options.coordinator.url());
    tracing::info!(worker_id, id_source, coordinator, "joined");
    Ok(reservation)
}

/// Joins again under this worker's previous id. The coordinator refuses the id until it notices
/// that the old session is lost, after `heartbeat_timeout` at most. If it refuses the id for twice
/// that time, another worker has the id. Then the worker accepts any other id, unless the user
/// requested this one.
///
/// # Errors
/// The coordinator refuses, or does not answer within `join_timeout`.
pub async fn rejoin(
    options: &JoinOptions,
    host: IpAddr,
    worker_id: u32,
    heartbeat_timeout: Duration,
) -> Result<WorkerIdReservation> {
    let request = join_request(options, host, Some(worker_id))?;
    let old_session_deadline = Instant::now() + 2 * heartbeat_timeout;
    let reservation = request_until_answered(options, request, Some(old_session_deadline)).await?;
    tracing::info!(worker_id = reservation.membership.worker_id, coordinator = options.coordinator.url(), "rejoined");
    Ok(reservation)
}

/// Renews a reservation at each heartbeat interval, while data and models are loaded. A reservation
/// that is not renewed expires; then the coordinator refuses the session, and the worker joins
/// again.
pub async fn renew(options: &JoinOptions, reservation: &WorkerIdReservation) -> Infallible {
    let Membership { worker_id, heartbeat_interval, heartbeat_timeout, .. } = reservation.membership;
    let request = v1::JoinRequest { worker_id: Some(worker_id), waited_ms: 0, ..reservation.request.clone() };
    let mut connection = None;
    loop {
        tokio::time::sleep(heartbeat_interval.max(MIN_HEARTBEAT_INTERVAL)).await;
        if connection.is_none() {
            connection = options.coordinator.open_channel(heartbeat_timeout).await.ok();
        }
        if let Some(channel) = connection.clone()
            && client(channel).join(request.clone()).await.is_err()
        {
            connection = None;
        }
    }
}

fn join_request(options: &JoinOptions, host: IpAddr, worker_id: Option<u32>) -> Result<v1::JoinRequest> {
    Ok(v1::JoinRequest {
        protocol_version: PROTOCOL_VERSION,
        worker_id,
        host: host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        device: match options.device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".to_owned(),
        },
        idempotency_key: random_idempotency_key().context("cannot get random numbers")?,
        waited_ms: 0,
    })
}

/// Sends the request until there is a final answer. A worker that rejoins passes
/// `old_session_deadline`: until then, a refusal of its id may be due to its own lost session.
async fn request_until_answered(
    options: &JoinOptions,
    mut request: v1::JoinRequest,
    old_session_deadline: Option<Instant>,
) -> Result<WorkerIdReservation> {
    let mut retry_policy = RetryPolicy::new(options);
    // The time of the first of the latest consecutive answers `Aborted`: the id belongs to a worker
    // that may have failed.
    let mut aborted_since = None;
    loop {
        request.waited_ms = aborted_since.map_or(0, |since: Instant| since.elapsed().as_millis() as u64);
        let answer = options.coordinator.call(async |channel| client(channel).join(request.clone()).await);
        let status = match answer.await {
            Ok(response) => {
                let membership = Membership::from_response(response, request.worker_id);
                let membership = membership.with_context(|| options.coordinator.url().to_owned())?;
                return Ok(WorkerIdReservation { membership, request });
            }
            Err(status) => status,
        };
        match status.code() {
            // No answer, a timeout, or a lost connection. The coordinator may have been suspended
            // meanwhile, and may not have received the heartbeats of the worker that has the id.
            Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown => aborted_since = None,
            // The worker that has the id may have failed. The coordinator knows after the heartbeat
            // timeout.
            Code::Aborted => {
                aborted_since.get_or_insert_with(Instant::now);
                retry_policy.wait_after_answer(status.message()).await;
                continue;
            }
            // Another program may listen on the coordinator's port until the coordinator restarts.
            Code::Internal if old_session_deadline.is_some() => {}
            Code::AlreadyExists if old_session_deadline.is_some_and(|deadline| Instant::now() < deadline) => {}
            Code::AlreadyExists if old_session_deadline.is_some() && options.requested_id.is_none() => {
                request.worker_id = None;
            }
            _ => bail!(refusal_message(options, &status)),
        }
        retry_policy.wait_before_retry(status.message()).await?;
    }
}

/// Exponential backoff between attempts to reach the coordinator, for `join_timeout` in total.
pub struct RetryPolicy<'a> {
    options: &'a JoinOptions,
    /// The time of the first attempt, or of the coordinator's last answer that requested a retry;
    /// later by the excluded durations.
    unanswered_since: Instant,
    backoff: Duration,
}

impl<'a> RetryPolicy<'a> {
    /// A policy before the first attempt.
    pub fn new(options: &'a JoinOptions) -> Self {
        Self { options, unanswered_since: Instant::now(), backoff: INITIAL_BACKOFF }
    }

    /// Waits before the next attempt, after one that failed because of `problem`.
    ///
    /// # Errors
    /// The join timeout has elapsed; the error names `problem`.
    pub async fn wait_before_retry(&mut self, problem: &str) -> Result<()> {
        let problem = &cli_support::one_line(problem, MAX_REASON_CHARS);
        let waited = self.unanswered_since.elapsed();
        // There is one last attempt when the join timeout elapses.
        self.backoff = self.backoff.min(self.options.join_timeout.saturating_sub(waited));
        if self.backoff.is_zero() {
            let url = self.options.coordinator.url();
            bail!("gave up on {url} after {:.0} s: {problem}", waited.as_secs_f64());
        }
        self.back_off(problem).await;
        Ok(())
    }

    /// Excludes a duration from the join timeout.
    pub fn exclude(&mut self, duration: Duration) {
        self.unanswered_since += duration;
    }

    /// Waits before the next attempt, after an answer that requests a retry.
    async fn wait_after_answer(&mut self, reason: &str) {
        self.back_off(&cli_support::one_line(reason, MAX_REASON_CHARS)).await;
        self.unanswered_since = Instant::now();
    }

    async fn back_off(&mut self, problem: &str) {
        let (url, seconds) = (self.options.coordinator.url(), self.backoff.as_secs_f64());
        tracing::warn!("cannot join {url} ({problem}); trying again in {seconds:.1} s");
        tokio::time::sleep(self.backoff).await;
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }
}

/// The message for a refusal, with the remedy.
fn refusal_message(options: &JoinOptions, status: &Status) -> String {
    let (url, reason) = (options.coordinator.url(), cli_support::one_line(status.message(), MAX_REASON_CHARS));
    match (status.code(), options.requested_id) {
        // The answer did not come from a coordinator.
        (Code::Internal, _) => format!("{url}: {reason}"),
        (Code::AlreadyExists, Some(RequestedWorkerId { source: WorkerIdSource::Flag, .. })) => {
            format!("{url} refused: {reason}; choose another --rank, or omit it to let the coordinator choose")
        }
        (Code::AlreadyExists, Some(RequestedWorkerId { worker_id, source: WorkerIdSource::Variable(name) })) => {
            format!(
                "{url} refused: {reason}; worker id {worker_id} is from the environment variable {name}: pass --rank, or unset {name} \
             to let the coordinator choose"
            )
        }
        _ => format!("{url} refused: {reason}"),
    }
}

/// The idempotency key of a join: 128 random bits, in hexadecimal.
fn random_idempotency_key() -> Result<String, getrandom::Error> {
    Ok(format!("{:016x}{:016x}", getrandom::u64()?, getrandom::u64()?))
}
