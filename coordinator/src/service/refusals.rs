//! Refused peers and calls: counted by reason, and logged with the peer's address. The number of
//! log lines is limited for each reason.

use std::{
    fmt::Display,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use dico_engine::{Refusal, RefusalKind};
use metrics::{Counter, counter};
use proto::v1::coordinator_server;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::{info, warn};

use super::log_limit::LogLimit;

/// The last part of the path of the call that opens a session.
const SESSION_METHOD: &str = "/Session";

/// Why a peer or a call is refused: the label `reason` of the metric `dico_refusals_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalReason {
    /// There are too many connections, or too many sessions without Attach.
    TooManyConnections,
    /// An HTTP request with a `Host` that this coordinator does not serve.
    UnknownHost,
    /// An HTTP request whose body does not arrive in time.
    BodyTimeout,
    /// No certificate, or an invalid one.
    InvalidCertificate,
    /// The peer does not speak TLS and HTTP/2, or exceeds the time limit of the handshake.
    FailedHandshake,
    /// The call has no join token, or a wrong one.
    WrongJoinToken,
    /// The call has no admin token, or a wrong one.
    WrongAdminToken,
    /// No reservation has the session token of Attach.
    UnknownSessionToken,
    /// The worker has another version of the protocol.
    OtherProtocolVersion,
    /// Another worker has the worker id (`--rank`).
    WorkerIdTaken,
    /// The run has `workers.max` workers, or all worker ids are taken. Also: a client opens a watch
    /// stream beyond the limit.
    MaxWorkersReached,
    /// The run's other workers compute on another kind of device.
    DeviceMismatch,
    /// The run is over, or the coordinator is shutting down or does not answer.
    RunOver,
    /// The run's state does not allow the request.
    WrongRunState,
    /// The message or body is larger than the limit.
    OversizedMessage,
    /// The message or body cannot be decoded, or an HTTP request has invalid headers.
    UndecodableMessage,
    /// The message is invalid, or breaks the protocol at this point.
    ProtocolViolation,
}

impl RefusalReason {
    const ALL: [Self; 17] = [
        Self::TooManyConnections,
        Self::UnknownHost,
        Self::BodyTimeout,
        Self::InvalidCertificate,
        Self::FailedHandshake,
        Self::WrongJoinToken,
        Self::WrongAdminToken,
        Self::UnknownSessionToken,
        Self::OtherProtocolVersion,
        Self::WorkerIdTaken,
        Self::MaxWorkersReached,
        Self::DeviceMismatch,
        Self::RunOver,
        Self::WrongRunState,
        Self::OversizedMessage,
        Self::UndecodableMessage,
        Self::ProtocolViolation,
    ];

    /// The name in metrics and logs.
    fn name(self) -> &'static str {
        match self {
            Self::TooManyConnections => "busy",
            Self::UnknownHost => "host",
            Self::BodyTimeout => "timeout",
            Self::InvalidCertificate => "certificate",
            Self::FailedHandshake => "handshake",
            Self::WrongJoinToken => "join_token",
            Self::WrongAdminToken => "admin_token",
            Self::UnknownSessionToken => "session_token",
            Self::OtherProtocolVersion => "protocol_version",
            Self::WorkerIdTaken => "rank_taken",
            Self::MaxWorkersReached => "full",
            Self::DeviceMismatch => "device",
            Self::RunOver => "over",
            Self::WrongRunState => "not_in_state",
            Self::OversizedMessage => "oversized",
            Self::UndecodableMessage => "malformed",
            Self::ProtocolViolation => "violation",
        }
    }

    /// The reason for which the call `path` was answered with this status code.
    pub fn from_call_status(path: &str, code: Code) -> Self {
        match code {
            Code::FailedPrecondition if is_call_of(path, coordinator_server::SERVICE_NAME) => {
                Self::OtherProtocolVersion
            }
            Code::FailedPrecondition => Self::WrongRunState,
            Code::AlreadyExists => Self::WorkerIdTaken,
            Code::PermissionDenied => Self::DeviceMismatch,
            Code::ResourceExhausted if path.ends_with(SESSION_METHOD) => Self::TooManyConnections,
            Code::ResourceExhausted => Self::MaxWorkersReached,
            Code::Unavailable | Code::NotFound => Self::RunOver,
            Code::OutOfRange => Self::OversizedMessage,
            Code::InvalidArgument => Self::ProtocolViolation,
            _ => Self::UndecodableMessage,
        }
    }

    /// The reason for which a session was ended with this status code.
    pub fn from_session_status(code: Code) -> Self {
        match code {
            Code::Unauthenticated => Self::UnknownSessionToken,
            Code::PermissionDenied => Self::DeviceMismatch,
            Code::Unavailable | Code::NotFound => Self::RunOver,
            Code::ResourceExhausted => Self::TooManyConnections,
            Code::OutOfRange => Self::OversizedMessage,
            Code::Internal => Self::UndecodableMessage,
            _ => Self::ProtocolViolation,
        }
    }
}

/// Whether `path` is the path of a call of this gRPC service.
pub fn is_call_of(path: &str, service: &str) -> bool {
    path.strip_prefix('/').and_then(|path| path.strip_prefix(service)).is_some_and(|call| call.starts_with('/'))
}

/// Counts and logs refusals. Clones share the counters and limits.
#[derive(Clone)]
pub struct Refusals(Arc<SharedRefusals>);

struct SharedRefusals {
    counters: [Counter; RefusalReason::ALL.len()],
    log_limits: Mutex<LogLimits>,
}

/// Rate limits of log lines.
#[derive(Default)]
struct LogLimits {
    /// Of refusals, by reason.
    refusals: [LogLimit; RefusalReason::ALL.len()],
    /// Of workers that have to retry, which are not refusals.
    retries: LogLimit,
}

impl Refusals {
    /// Counters in the current recorder of the crate `metrics`, starting from zero.
    pub fn new() -> Self {
        let counters = RefusalReason::ALL.map(|reason| {
            let counter = counter!("dico_refusals_total", "reason" => reason.name());
            counter.absolute(0);
            counter
        });
        Self(Arc::new(SharedRefusals { counters, log_limits: Mutex::default() }))
    }

    fn log_limits(&self) -> MutexGuard<'_, LogLimits> {
        self.0.log_limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a refusal.
    pub fn record(&self, peer: SocketAddr, reason: RefusalReason, message: impl Display) {
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

    /// Logs how many log lines were suppressed in the periods that are over. The driver calls this
    /// function at each tick.
    pub fn log_suppressed_counts(&self, now: Instant) {
        let mut limits = self.log_limits();
        for (reason, limit) in RefusalReason::ALL.into_iter().zip(&mut limits.refusals) {
            if let Some(count) = limit.end_period(now) {
                warn!(reason = reason.name(), count, "suppressed log lines about further refusals");
            }
        }
        if let Some(count) = limits.retries.end_period(now) {
            info!(count, "suppressed log lines about further workers that have to retry");
        }
    }
}

/// A refusal as the status of a call.
pub fn status_of(refusal: Refusal) -> Status {
    let code = match refusal.kind {
        RefusalKind::InvalidArgument => Code::InvalidArgument,
        RefusalKind::FailedPrecondition => Code::FailedPrecondition,
        RefusalKind::AlreadyExists => Code::AlreadyExists,
        RefusalKind::ResourceExhausted => Code::ResourceExhausted,
        RefusalKind::Unauthenticated => Code::Unauthenticated,
        RefusalKind::Unavailable => Code::Unavailable,
        RefusalKind::RunOver => Code::NotFound,
        RefusalKind::RetryLater => Code::Aborted,
        RefusalKind::DeviceMismatch => Code::PermissionDenied,
        RefusalKind::ForeignState => Code::DataLoss,
    };
    Status::new(code, refusal.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        assert!(RefusalReason::ALL.into_iter().enumerate().all(|(index, reason)| reason as usize == index));
        let names: std::collections::BTreeSet<_> = RefusalReason::ALL.map(RefusalReason::name).into();
        assert_eq!(names.len(), RefusalReason::ALL.len());
    }
}
