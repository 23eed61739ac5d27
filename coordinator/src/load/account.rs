//! What the workers and the probe saw.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message;
use proto::v1;

use super::usage::Usage;

/// Filled by many, read when all are done. Times are since it was made.
pub struct Account {
    started: Instant,
    seen: Mutex<Seen>,
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// When each worker had joined.
    pub joined: Vec<Duration>,
    /// When the last worker heard of its generation.
    pub met: Duration,
    /// `Train` directives, by their first step.
    pub grants: BTreeMap<u64, Grant>,
    /// When the first worker reported a step.
    pub reported: BTreeMap<u64, Duration>,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// How long the probe's questions took.
    pub probed: Vec<Duration>,
    /// What the coordinator had used when the first worker might train.
    pub joining: Usage,
    /// What it had used when it was last looked at.
    pub usage: Usage,
    /// Bytes of one worker's messages to the coordinator, but for captions.
    pub sent: u64,
    /// Bytes of the messages to that worker.
    pub received: u64,
}

/// The receipt of a `Train` by all workers.
#[derive(Clone, Copy, Debug)]
pub struct Grant {
    /// How many steps it grants.
    pub steps: u32,
    /// By the first worker.
    pub first: Duration,
    /// By the last so far.
    pub last: Duration,
}

impl Account {
    /// An empty account.
    pub fn new() -> Self {
        Self { started: Instant::now(), seen: Mutex::default() }
    }

    /// What was seen so far.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker has joined.
    pub fn joined(&self) {
        let now = self.started.elapsed();
        self.seen().joined.push(now);
    }

    /// A worker hears of its generation.
    pub fn met(&self) {
        let now = self.started.elapsed();
        let mut seen = self.seen();
        seen.met = seen.met.max(now);
    }

    /// A worker may train.
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

    /// A worker is about to report a step.
    pub fn reported(&self, step: u64) {
        let now = self.started.elapsed();
        self.seen().reported.entry(step).or_insert(now);
    }

    /// A worker has sent a heartbeat.
    pub fn beat(&self) {
        self.seen().heartbeats += 1;
    }

    /// The one worker whose messages are counted sends one.
    pub fn sent(&self, message: &v1::WorkerMessage) {
        self.seen().sent += message.encoded_len() as u64;
    }

    /// The one worker whose messages are counted is sent one.
    pub fn received(&self, directive: &v1::Directive) {
        self.seen().received += directive.encoded_len() as u64;
    }

    /// A question was answered after so long.
    pub fn probed(&self, took: Duration) {
        self.seen().probed.push(took);
    }

    /// The coordinator has used so much.
    pub fn used(&self, usage: Usage) {
        self.seen().usage = usage;
    }
}
