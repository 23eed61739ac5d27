//! Measurements of a load test, which the workers and the latency probe record.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prost::Message;
use proto::v1;

use crate::usage::Usage;

/// Records measurements of all workers. Times are relative to its creation.
pub struct Recorder {
    started_at: Instant,
    measurements: Mutex<Measurements>,
}

/// The measurements of a load test.
#[derive(Clone, Debug, Default)]
pub struct Measurements {
    /// When each worker had joined, in the order of joining.
    pub join_times: Vec<Duration>,
    /// When the last worker so far received the directive `Rendezvous`.
    pub last_rendezvous_receipt: Duration,
    /// The delivery of `Train` directives, by the number of steps before those that they grant.
    pub grants: BTreeMap<u64, StepGrant>,
    /// When the first worker reported each step, by the number of the step, from 1.
    pub first_reports: BTreeMap<u64, Duration>,
    /// The number of heartbeats sent.
    pub heartbeats: u64,
    /// The response times of the latency probe's requests.
    pub probe_latencies: Vec<Duration>,
    /// The coordinator's resource usage when the first steps were granted.
    pub usage_before_training: Usage,
    /// The coordinator's latest resource usage.
    pub usage: Usage,
    /// The total size of one worker's messages to the coordinator, without captions, in bytes.
    pub sent_bytes: u64,
    /// The total size of the coordinator's messages to that worker, in bytes.
    pub received_bytes: u64,
}

/// The delivery to all workers of a `Train` directive, which grants steps.
#[derive(Clone, Copy, Debug)]
pub struct StepGrant {
    /// The number of steps granted.
    pub steps: u32,
    /// When the first worker received it.
    pub first_receipt: Duration,
    /// When the last worker so far received it.
    pub last_receipt: Duration,
}

impl Recorder {
    /// Creates a recorder without measurements.
    pub fn new() -> Self {
        Self { started_at: Instant::now(), measurements: Mutex::default() }
    }

    /// The measurements so far.
    pub fn measurements(&self) -> MutexGuard<'_, Measurements> {
        self.measurements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a worker has joined.
    pub fn record_join(&self) {
        let now = self.started_at.elapsed();
        self.measurements().join_times.push(now);
    }

    /// Records that a worker has received the directive `Rendezvous`.
    pub fn record_rendezvous(&self) {
        let now = self.started_at.elapsed();
        let mut measurements = self.measurements();
        measurements.last_rendezvous_receipt = measurements.last_rendezvous_receipt.max(now);
    }

    /// Records that a worker has received a `Train` directive.
    pub fn record_train(&self, train: &v1::Train) {
        let now = self.started_at.elapsed();
        let mut measurements = self.measurements();
        if measurements.grants.is_empty() {
            measurements.usage_before_training = measurements.usage;
        }
        let new = StepGrant { steps: train.steps, first_receipt: now, last_receipt: now };
        let grant = measurements.grants.entry(train.first_step).or_insert(new);
        grant.first_receipt = grant.first_receipt.min(now);
        grant.last_receipt = grant.last_receipt.max(now);
    }

    /// Records that a worker is about to report the step with this number, from 1.
    pub fn record_report(&self, step: u64) {
        let now = self.started_at.elapsed();
        self.measurements().first_reports.entry(step).or_insert(now);
    }

    /// Records that a worker has sent a heartbeat.
    pub fn record_heartbeat(&self) {
        self.measurements().heartbeats += 1;
    }

    /// Records a message of the worker whose messages are measured.
    pub fn record_sent(&self, message: &v1::WorkerMessage) {
        self.measurements().sent_bytes += message.encoded_len() as u64;
    }

    /// Records a message to the worker whose messages are measured.
    pub fn record_received(&self, directive: &v1::Directive) {
        self.measurements().received_bytes += directive.encoded_len() as u64;
    }

    /// Records the response time of a request of the latency probe.
    pub fn record_probe(&self, latency: Duration) {
        self.measurements().probe_latencies.push(latency);
    }

    /// Records the coordinator's resource usage.
    pub fn record_usage(&self, usage: Usage) {
        self.measurements().usage = usage;
    }
}
