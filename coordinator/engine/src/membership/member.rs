//! Members: workers with an attached session.

use proto::v1;

use crate::types::{SessionId, Time};

/// The weight of the newest step in a member's moving average of speed.
const SPEED_SMOOTHING: f64 = 0.2;

/// The state of a member with respect to generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberState {
    /// It is in no generation. The next one includes it, unless it leaves
    /// ([`Member::leave_reason`]).
    Idle,
    /// It is in this generation.
    InGeneration(u64),
    /// It was ordered to release this generation, or has reported a failure in it, and has not
    /// reported `Idle` yet.
    Releasing {
        /// The generation.
        generation: u64,
        /// When the order was sent, or the report of the failure arrived.
        since: Time,
    },
}

/// The description of a worker's machine in its join request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The host name or address by which other workers reach it.
    pub host: String,
    /// The version of the worker program.
    pub version: String,
    /// Device, e.g. "cpu" or "cuda:0".
    pub device: String,
}

impl Machine {
    /// The type of its device, e.g. "cuda".
    pub(super) fn device_type(&self) -> &str {
        self.device.split(':').next().unwrap_or_default()
    }
}

/// A worker with an attached session. It is removed when the session closes, when it leaves, or
/// when it is evicted.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its session.
    pub session: SessionId,
    /// The machine that it runs on.
    pub machine: Machine,
    /// The address (host:port) of the TCPStore that it serves: the key-value store of
    /// `torch.distributed`, through which the ranks of a generation find each other. The members
    /// use the store of rank 0.
    pub tcp_store_address: String,
    /// Its state with respect to generations.
    pub state: MemberState,
    /// The activity of its training thread, from its last heartbeat or `Idle` message.
    pub phase: v1::Phase,
    /// The position of the training state (parameters and optimizer) that it holds; none if it has
    /// no training state of this run, or one that no generation has agreed on (see
    /// [`is_agreed`](crate::plan::is_agreed)).
    pub position: Option<v1::Position>,
    /// The position in its last heartbeat or `Idle` message.
    heartbeat_position: Option<v1::Position>,
    /// When its last message arrived.
    pub last_message_at: Time,
    /// The start of its stall timer: the last time at which it attached, a heartbeat or `Idle`
    /// message showed another phase or position, it reported captions or a save (also a failed
    /// one), or it had no pending directive.
    pub last_progress_at: Time,
    /// Why it leaves: the reason in its message `Leaving`, or that of a drain; none if it stays.
    pub leave_reason: Option<String>,
    /// Whether other members cannot reach it, although it alone holds the furthest state. It then
    /// forms a generation without other members, which only saves that state.
    pub is_isolated: bool,
    /// Samples per second that it computes, without the all-reduce: a moving average over its
    /// steps; none before the first step.
    pub speed: Option<f64>,
    /// Its throughput in the last step that it reported; zeros before its first step.
    pub throughput: MemberThroughput,
}

/// The throughput of a member in the last step that it reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MemberThroughput {
    /// Samples per second; a sample is an image, or a caption for cross-entropy.
    pub images_per_second: f64,
    /// Tokens per second.
    pub tokens_per_second: f64,
    /// The duration of the step without the all-reduce, in seconds.
    pub compute_seconds: f64,
}

impl Member {
    pub(super) fn new(now: Time, session: SessionId, machine: Machine, tcp_store_address: String) -> Self {
        Self {
            session,
            machine,
            tcp_store_address,
            state: MemberState::Idle,
            phase: v1::Phase::Idle,
            position: None,
            heartbeat_position: None,
            last_message_at: now,
            last_progress_at: now,
            leave_reason: None,
            is_isolated: false,
            speed: None,
            throughput: MemberThroughput::default(),
        }
    }

    /// Records the phase and position of a heartbeat. A change of either counts as progress.
    pub fn record_heartbeat(&mut self, now: Time, phase: v1::Phase, position: Option<v1::Position>) {
        if (self.phase, self.heartbeat_position) != (phase, position) {
            (self.phase, self.heartbeat_position, self.last_progress_at) = (phase, position, now);
        }
    }

    /// Records the throughput of a reported step.
    pub fn record_step_timing(&mut self, step: &v1::StepDone) {
        let compute_seconds = (step.seconds - step.all_reduce_seconds).max(0.0);
        let per_second = |count: f64| if step.seconds > 0.0 { count / step.seconds } else { 0.0 };
        self.throughput = MemberThroughput {
            images_per_second: per_second(step.samples.into()),
            tokens_per_second: per_second(step.tokens as f64),
            compute_seconds,
        };
        let newest = f64::from(step.samples) / compute_seconds;
        if newest.is_finite() && newest > 0.0 {
            let smooth = |average: f64| average + SPEED_SMOOTHING * (newest - average);
            self.speed = Some(self.speed.map_or(newest, smooth));
        }
    }
}
