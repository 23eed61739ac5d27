//! Measurements of a load test, by the workers and the probe.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message;
use proto::v1;

use crate::usage::Usage;

/// Shared by all workers; read when all have finished. Times are relative to its creation.
pub struct Recorder {
    started: Instant,
    seen: Mutex<Measurements>,
}

/// The measurements.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// The time at which each worker had joined.
    pub joined: Vec<Duration>,
    /// When the last worker received its rendezvous.
    pub met: Duration,
    /// `Train` directives, by their first step.
    pub grants: BTreeMap<u64, Grant>,
    /// When the first worker reported each step.
    pub reported: BTreeMap<u64, Duration>,
    /// The number of heartbeats sent.
    pub heartbeats: u64,
    /// The response times of the probe's requests.
    pub probed: Vec<Duration>,
    /// The coordinator's resource usage when the first steps were granted.
    pub joining: Usage,
    /// The coordinator's last known resource usage.
    pub usage: Usage,
    /// The size of one worker's messages to the coordinator, without captions, in bytes.
    pub sent: u64,
    /// The size of the coordinator's messages to that worker, in bytes.
    pub received: u64,
}

/// The delivery of a `Train` directive to all workers.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// The number of steps granted.
    pub steps: u32,
    /// When the first worker received it.
    pub first: Duration,
    /// When the last worker so far received it.
    pub last: Duration,
}

impl Recorder {
    /// An empty account.
    pub fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }

    /// The measurements so far.
    pub fn seen(&self) -> MutexGuard<'_, Measurements> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a worker has joined.
    pub fn joined(&self) {
        let now = self.started.elapsed();
        self.seen().joined.push(now);
    }

    /// Records that a worker has received its rendezvous.
    pub fn met(&self) {
        let now = self.started.elapsed();
        let mut seen = self.seen();
        seen.met = seen.met.max(now);
    }

    /// Records that a worker has received a `Train` directive.
    pub fn granted(&self, train: &v1::Train) {
        let now = self.started.elapsed();
        let mut seen = self.seen();
        if seen.grants.is_empty() {
            seen.joining = seen.usage;
        }
        let new = Grant { steps: train.steps, first: now, last: now };
        let grant = seen.grants.entry(train.first_step).or_insert(new);
        (grant.first, grant.last) = (grant.first.min(now), grant.last.max(now));
    }

    /// Records that a worker is about to report a step.
    pub fn reported(&self, step: u64) {
        let now = self.started.elapsed();
        self.seen().reported.entry(step).or_insert(now);
    }

    /// Records that a worker has sent a heartbeat.
    pub fn beat(&self) {
        self.seen().heartbeats += 1;
    }

    /// Records a message of the worker whose messages are measured.
    pub fn sent(&self, message: &v1::WorkerMessage) {
        self.seen().sent += message.encoded_len() as u64;
    }

    /// Records a message to the worker whose messages are measured.
    pub fn received(&self, directive: &v1::Directive) {
        self.seen().received += directive.encoded_len() as u64;
    }

    /// Records the response time of a request.
    pub fn probed(&self, took: Duration) {
        self.seen().probed.push(took);
    }

    /// Records the coordinator's resource usage.
    pub fn used(&self, usage: Usage) {
        self.seen().usage = usage;
    }
}
