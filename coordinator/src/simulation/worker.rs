//! A simulated worker: a process with a connection to the coordinator
//! ([`connection`](super::connection)) and a training thread ([`training`](super::training)).
//! Faults block the whole process, or only its training thread.

use std::collections::VecDeque;

use dico_engine::{RequestId, SessionId, Time};
use proto::{v1, v1::directive::Directive, v1::worker_message::Message};
use rand::Rng;
use worker_protocol::{Command, Session, Training};

use super::{
    ProcessId, UpdateHistory,
    cluster::{Cluster, SimEvent},
    network::PacketToCoordinator,
};

/// A worker process, from its start to its end.
#[derive(Debug)]
pub struct Worker {
    /// The host name, which is also its address.
    pub host: String,
    /// The worker id that it was started with.
    pub requested_worker_id: Option<u32>,
    /// The worker id that it requests: the one that the coordinator assigned last, else the one
    /// that it was started with.
    pub worker_id: Option<u32>,
    /// The state of the connection to the coordinator.
    pub connection: ConnectionState,
    /// The time of its first attempt to join since it lost its connection.
    pub joining_since: Time,
    /// The delay before the next attempt to join.
    pub back_off: Time,
    /// The time of the first answer that told it to retry later, because its worker id is taken or
    /// the run is full.
    pub retry_later_since: Option<Time>,

    /// The connection's side of the protocol; none until data and models are loaded.
    pub protocol: Option<Session>,
    /// Commands that the training thread has not begun.
    pub commands: VecDeque<Command>,
    /// The training thread's side of the protocol.
    pub training: Training,
    /// The activity of the training thread.
    pub activity: Activity,
    /// Reports that the connection has not taken.
    pub reports: VecDeque<Message>,
    /// The number of the training thread's last scheduled wake-up; earlier ones are ignored.
    pub wake_up: u64,
    /// Whether its process has received a shutdown signal.
    pub is_leaving: bool,
    /// The generation that it takes part in: it is a member of that generation's collective.
    pub generation: Option<u64>,
    /// The number of directives of that generation that it has begun.
    pub directives_begun: usize,
    /// The number of all-reduces that it has entered in that generation.
    pub round: u64,
    /// Its rank in that generation.
    pub rank: u32,
    /// The duration of its last step without the all-reduce.
    pub compute_time: Time,
    /// Its training state.
    pub history: UpdateHistory,
    /// What it claims falsely to hold of the run that it joins, if it does.
    pub false_claim: Option<FalseClaim>,

    /// The approximate duration of a step.
    pub step_duration: Time,
    /// Whether the whole process is suspended.
    pub is_suspended: bool,
    /// Whether the training thread is blocked.
    pub is_training_blocked: bool,
    /// Events that were due while the process was suspended or the training thread was blocked.
    pub deferred_events: Vec<SimEvent>,
    /// The time at which its last fault was repaired.
    pub repaired_at: Time,
}

/// A state that a worker claims falsely to hold.
#[derive(Clone, Copy, Debug)]
pub struct FalseClaim {
    pub position: v1::Position,
    pub generation: u64,
    pub term: u64,
}

/// The state of a worker's connection to the coordinator.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Waits for the next attempt to join.
    Disconnected,
    /// Waits for the response to this join request.
    Joining(RequestId),
    /// Has a reservation, and loads data and models of this run.
    Loading { session_token: String, run_id: String },
    /// Has this session.
    Attached(SessionId),
    /// Has lost this session; the training thread has not released its generation yet.
    Releasing(SessionId),
}

/// The activity of the training thread.
#[derive(Debug, Default)]
pub enum Activity {
    #[default]
    Idle,
    /// Checks that its peers are reachable.
    CheckingPeers(v1::Rendezvous),
    /// Waits until all members have entered the rendezvous.
    AwaitingRendezvous(v1::Rendezvous),
    /// Receives the state of the source.
    ReceivingState(v1::Rendezvous),
    /// Computes the gradient of a step.
    Computing(v1::Train),
    /// Waits until all members have entered the all-reduce.
    AwaitingAllReduce(v1::Train),
    /// Applies the update of a step; all members have entered the all-reduce.
    ApplyingUpdate(v1::Train),
    /// Captions the first of the remaining ranges.
    Captioning(v1::Evaluate),
    /// Copies its state for the saver.
    CopyingState(v1::Checkpoint),
    /// Waits until the saver has finished an earlier save.
    AwaitingSaver,
    /// Waits until the saver has finished; the run is complete.
    Finishing,
}

/// The reason for which a worker's connection or training thread wakes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// The next attempt to join is due.
    Join,
    /// There was no response to this join request.
    JoinTimeout(RequestId),
    /// Data and models are loaded.
    Loaded,
    /// The next heartbeat is due.
    Heartbeat(SessionId),
    /// The process receives a shutdown signal.
    ShutdownSignal,
    /// The training thread has not finished the step in flight within the heartbeat timeout after
    /// the loss of this session.
    ReleaseTimeout(SessionId),
    /// The training thread has completed its activity.
    ActivityDone,
    /// The training thread's collective has failed.
    CollectiveFailed,
}

impl Worker {
    pub fn new(host: String, requested_worker_id: Option<u32>, step_duration: Time) -> Self {
        Self {
            host,
            requested_worker_id,
            worker_id: requested_worker_id,
            connection: ConnectionState::Disconnected,
            joining_since: Time::ZERO,
            back_off: Time::ZERO,
            retry_later_since: None,
            protocol: None,
            commands: VecDeque::new(),
            training: Training::default(),
            activity: Activity::Idle,
            reports: VecDeque::new(),
            wake_up: 0,
            is_leaving: false,
            generation: None,
            directives_begun: 0,
            round: 0,
            rank: 0,
            compute_time: Time::ZERO,
            history: UpdateHistory::new(),
            false_claim: None,
            step_duration,
            is_suspended: false,
            is_training_blocked: false,
            deferred_events: Vec::new(),
            repaired_at: Time::ZERO,
        }
    }

    /// Discards its training state, and everything that it knows of its run: data and models have
    /// to be loaded again.
    pub fn reset(&mut self) {
        (self.protocol, self.training, self.false_claim) = (None, Training::default(), None);
        (self.history, self.activity) = (UpdateHistory::new(), Activity::Idle);
        (self.commands, self.reports) = (VecDeque::new(), VecDeque::new());
    }

    /// A new process that holds this worker's state, as after the loss of its connection. It
    /// requests the worker id of its machine.
    fn with_former_state(mut self, host: String, requested_worker_id: Option<u32>) -> Self {
        self.release_at_once();
        let Self { protocol, training, history, false_claim, step_duration, .. } = self;
        let new = Self::new(host, requested_worker_id, step_duration);
        Self { protocol, training, history, false_claim, ..new }
    }

    /// Releases its generation, as after the loss of its connection.
    fn release_at_once(&mut self) {
        let Some(protocol) = &mut self.protocol else { return };
        let command = protocol.on_disconnect();
        protocol.on_release_timeout();
        _ = self.training.abandoned();
        _ = self.training.released(None);
        _ = self.training.begin(command);
        for report in self.training.released(None).reports {
            _ = protocol.on_report(report);
        }
    }

    /// Whether it has received Finish: it will exit, and join no other run.
    pub fn is_finishing(&self) -> bool {
        let is_finish = |command: &Command| matches!(command.directive.kind(), Directive::Finish(_));
        matches!(self.activity, Activity::Finishing) || self.commands.iter().any(is_finish)
    }

    /// The position of its training state; none if it has no complete one.
    pub fn position(&self) -> Option<v1::Position> {
        self.training.position()
    }

    /// The generation of the last Rendezvous that reached it, and its term; 0 before the first.
    pub fn last_generation(&self) -> (u64, u64) {
        self.protocol.as_ref().map_or((0, 0), |protocol| (protocol.generation(), protocol.term()))
    }

    /// The id of the run to which its state belongs; empty before it has joined a run.
    pub fn run_id(&self) -> &str {
        self.protocol.as_ref().map_or("", Session::run_id)
    }

    /// The worker's session, if it is attached.
    pub fn session(&self) -> Option<SessionId> {
        if let ConnectionState::Attached(session) = self.connection { Some(session) } else { None }
    }
}

impl Cluster {
    /// Starts a worker process, sometimes with the state of a former worker.
    pub fn start_worker(&mut self, host: String, requested_worker_id: Option<u32>) -> ProcessId {
        self.last_process_id += 1;
        let id = ProcessId(self.last_process_id);
        let step_duration = self.scenario.step_duration;
        // Because of the random choice, some former workers join only when others have trained for
        // a long time.
        let takes_former_state = !self.former_workers.is_empty() && self.rng.random();
        let worker = match self.former_workers.pop_if(|_| takes_former_state) {
            Some(worker) => worker.with_former_state(host, requested_worker_id),
            None => Worker::new(host, requested_worker_id, step_duration),
        };
        self.workers.insert(id, worker);
        self.start_joining(id);
        id
    }

    /// Ends a worker process without a failure: its saver completes its saves before.
    pub fn retire_worker(&mut self, id: ProcessId) {
        let saves = self.savers.remove(&id);
        self.end_worker(id);
        self.savers.extend(saves.map(|saves| (id, saves)));
    }

    /// Ends a worker process at once. Its connections are closed, so the coordinator and the
    /// worker's peers notice.
    pub fn end_worker(&mut self, id: ProcessId) {
        let is_silent = false;
        self.remove_worker(id, is_silent);
    }

    /// Ends a worker process, because its machine is lost. Its connections are not closed, so the
    /// coordinator and the worker's peers do not notice.
    pub fn lose_machine(&mut self, id: ProcessId) {
        let is_silent = true;
        self.remove_worker(id, is_silent);
    }

    fn remove_worker(&mut self, id: ProcessId, is_silent: bool) {
        self.savers.remove(&id);
        let Some(worker) = self.workers.remove(&id) else { return };
        if let ConnectionState::Attached(session) = worker.connection {
            if is_silent {
                let (coordinator_notices, worker_notices) = (false, false);
                self.reset_session(session, coordinator_notices, worker_notices);
            } else {
                self.send_to_coordinator(session, PacketToCoordinator::End);
            }
        }
        if let Some(generation) = worker.generation {
            self.release_collective(id, generation, is_silent);
        }
        self.schedule_replacement(&worker.host);
    }

    /// Schedules the next wake-up of the training thread, instead of an earlier one.
    pub fn schedule_wake_up(&mut self, id: ProcessId, delay: Time, reason: WakeReason) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.wake_up += 1;
        let wake_up = worker.wake_up;
        self.queue.schedule_after(delay, SimEvent::TrainingWakeUp { worker: id, wake_up, reason });
    }

    /// Defers an event for a worker while that is blocked. Returns other events.
    pub fn defer_if_worker_blocked(&mut self, id: Option<ProcessId>, event: SimEvent) -> Option<SimEvent> {
        let Some(worker) = id.and_then(|id| self.workers.get_mut(&id)) else { return Some(event) };
        if worker.is_suspended || (worker.is_training_blocked && matches!(event, SimEvent::TrainingWakeUp { .. })) {
            worker.deferred_events.push(event);
            return None;
        }
        Some(event)
    }

    /// Resumes a blocked worker.
    pub fn resume_worker(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.is_suspended, worker.is_training_blocked) = (false, false);
        for event in std::mem::take(&mut worker.deferred_events) {
            self.queue.schedule_after(Time::ZERO, event);
        }
        self.execute_commands(id);
    }
}
