//! The options of `worker join`.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use tch::Device;
use transport::Connector;

/// The options of `worker join`.
pub struct JoinOptions {
    /// The connection settings for the coordinator.
    pub coordinator: Connector,
    /// The requested worker id; none to let the coordinator choose.
    pub requested_id: Option<RequestedWorkerId>,
    /// The device to compute on.
    pub device: Device,
    /// The address at which other workers reach this one; none for the local address of the route
    /// to the coordinator.
    pub host: Option<IpAddr>,
    /// How long to retry when the coordinator does not answer.
    pub join_timeout: Duration,
}

/// The worker id that a worker requests, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestedWorkerId {
    /// The worker id.
    pub worker_id: u32,
    /// The source of the id, for messages.
    pub source: WorkerIdSource,
}

/// The source of a requested worker id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerIdSource {
    /// The flag `--rank`.
    Flag,
    /// The environment variable of this name.
    Variable(&'static str),
}

impl fmt::Display for WorkerIdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "--rank",
            Self::Variable(name) => name,
        })
    }
}
