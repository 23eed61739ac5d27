//! Refused peers and calls: counted by reason, and logged with the peer's address. The number of
//! log lines is limited for each reason.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use metrics::{Counter, counter};
use proto::v1::coordinator_server;
use tokio::time::Instant;
use tonic::Code;
use tracing::{info, warn};

use super::log_limit::LogLimit;

/// The last part of the path of the call that opens a session.
const SESSION_METHOD: &str = "/Session";

/// Why a peer or a call is refused. A fixed set, because it is the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There are too many connections, or too many sessions without Attach.
    Busy,
    /// An HTTP request with a `Host` that this coordinator does not serve.
    Host,
    /// An HTTP request whose body does not arrive in time.
    Timeout,
    /// No certificate, or an invalid one.
    Certificate,
    /// The peer does not speak TLS and HTTP/2, or exceeds the time limit of the handshake.
    Handshake,
    JoinToken,
    AdminToken,
    SessionToken,
    ProtocolVersion,
    /// Another worker has the worker id (`--rank`).
    RankTaken,
    /// The run has `workers.max` workers.
    Full,
    /// The run's other workers compute on another kind of device.
    Device,
    /// The run is over.
    Over,
    /// The run's state does not allow the request.
    State,
    Oversized,
    /// The message cannot be decoded.
    Malformed,
    /// The message is invalid, or breaks the protocol at this point.
    Violation,
}

impl Reason {
    const ALL: [Self; 17] = [
        Self::Busy,
        Self::Host,
        Self::Timeout,
        Self::Certificate,
        Self::Handshake,
        Self::JoinToken,
        Self::AdminToken,
        Self::SessionToken,
        Self::ProtocolVersion,
        Self::RankTaken,
        Self::Full,
        Self::Device,
        Self::Over,
        Self::State,
        Self::Oversized,
        Self::Malformed,
        Self::Violation,
    ];

    /// The name in metrics and logs.
    fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Host => "host",
            Self::Timeout => "timeout",
            Self::Certificate => "certificate",
            Self::Handshake => "handshake",
            Self::JoinToken => "join_token",
            Self::AdminToken => "admin_token",
            Self::SessionToken => "session_token",
            Self::ProtocolVersion => "protocol_version",
            Self::RankTaken => "rank_taken",
            Self::Full => "full",
            Self::Device => "device",
            Self::Over => "over",
            Self::State => "not_in_state",
            Self::Oversized => "oversized",
            Self::Malformed => "malformed",
            Self::Violation => "violation",
        }
    }

    /// The reason for which the call `path` was answered with this status code.
    pub fn from_call_status(path: &str, code: Code) -> Self {
        match code {
            Code::FailedPrecondition if is_call_of(path, coordinator_server::SERVICE_NAME) => Self::ProtocolVersion,
            Code::FailedPrecondition => Self::State,
            Code::AlreadyExists => Self::RankTaken,
            Code::PermissionDenied => Self::Device,
            Code::ResourceExhausted if path.ends_with(SESSION_METHOD) => Self::Busy,
            Code::ResourceExhausted => Self::Full,
            Code::Unavailable | Code::NotFound => Self::Over,
            Code::OutOfRange => Self::Oversized,
            Code::InvalidArgument => Self::Violation,
            _ => Self::Malformed,
        }
    }

    /// The reason for which a session was ended with this status code.
    pub fn from_session_status(code: Code) -> Self {
        match code {
            Code::Unauthenticated => Self::SessionToken,
            Code::PermissionDenied => Self::Device,
            Code::Unavailable | Code::NotFound => Self::Over,
            Code::ResourceExhausted => Self::Busy,
            Code::OutOfRange => Self::Oversized,
            Code::Internal => Self::Malformed,
            _ => Self::Violation,
        }
    }
}

/// Whether `path` is the path of a call of this gRPC service.
pub fn is_call_of(path: &str, service: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(service)).is_some_and(|call| call.starts_with('/'))
}

/// Counts and logs refusals. Clones share one state.
#[derive(Clone)]
pub struct Refusals(Arc<Inner>);

struct Inner {
    counters: [Counter; Reason::ALL.len()],
    log_limits: Mutex<LogLimits>,
}

/// Rate limits of log lines.
#[derive(Default)]
struct LogLimits {
    refusals: [LogLimit; Reason::ALL.len()],
    retries: LogLimit,
}

impl Refusals {
    /// Counters in the current metrics recorder, starting from zero.
    pub fn new() -> Self {
        let counters = Reason::ALL.map(|reason| {
            let counter = counter!("dico_refusals_total", "reason" => reason.name());
            counter.absolute(0);
            counter
        });
        Self(Arc::new(Inner { counters, log_limits: Mutex::default() }))
    }

    fn log_limits(&self) -> MutexGuard<'_, LogLimits> {
        self.0.log_limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a refusal.
    pub fn record(&self, peer: SocketAddr, reason: Reason, message: impl Display) {
        if self.log_limits().refusals[reason as usize].try_acquire(Instant::now()) {
            warn!(%peer, reason = reason.name(), "refused: {message}");
        }
        self.0.counters[reason as usize].increment(1);
    }

    /// Logs that a worker has to retry its call, which does not count as a refusal.
    pub fn record_retry(&self, peer: SocketAddr, message: impl Display) {
        if self.log_limits().retries.try_acquire(Instant::now()) {
            info!(%peer, "the worker has to retry: {message}");
        }
    }

    /// Logs how many log lines were suppressed. The driver calls it at each tick.
    pub fn log_suppressed(&self, now: Instant) {
        let mut limits = self.log_limits();
        for (reason, limit) in Reason::ALL.into_iter().zip(&mut limits.refusals) {
            if let Some(count) = limit.end_period(now) {
                warn!(reason = reason.name(), count, "suppressed log lines about further refusals");
            }
        }
        if let Some(count) = limits.retries.end_period(now) {
            info!(count, "suppressed log lines about further workers that have to retry");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        assert!(Reason::ALL.into_iter().enumerate().all(|(index, reason)| reason as usize == index));
        let names: std::collections::BTreeSet<_> = Reason::ALL.map(Reason::name).into();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
