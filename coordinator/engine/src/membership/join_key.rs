//! What the parts of a join have in common: its settings, its key, and the limit of its texts.

use std::time::Duration;

use sha2::{Digest, Sha256};

/// Maximal length of each text in the requests of a worker that joins, in bytes: host name,
/// software version, device, idempotency key, and address of its TCPStore. DNS allows 253 bytes
/// for host names.
pub const MAX_JOIN_TEXT_BYTES: usize = 512;

/// The settings of the run that apply to workers that join.
#[derive(Clone, Copy, Debug)]
pub struct JoinSettings {
    /// `workers.max`.
    pub max_workers: u32,
    /// The heartbeat interval of workers.
    pub heartbeat_interval: Duration,
    /// A member that sent no message for this long counts as failed.
    pub heartbeat_timeout: Duration,
}

/// The SHA-256 digest of a join key. A join key is a random text that identifies one attempt to
/// join through all its requests: the request's idempotency key, or a key that the coordinator
/// generates for a request without one. It is also the secret part of the session token (`<worker
/// id>.<join key>`). The time to compare two digests reveals nothing about the join keys, so a
/// client cannot guess a session token byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinKeyDigest([u8; 32]);

impl JoinKeyDigest {
    pub fn of(join_key: &str) -> Self {
        Self(Sha256::digest(join_key).into())
    }
}
