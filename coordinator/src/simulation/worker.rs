//! A simulated worker: a process with a connection to the coordinator
//! ([`connection`](super::connection)) and a training thread ([`training`](super::training)).
//! Faults block the whole process, or only its training thread.

use std::collections::VecDeque;

use dico_engine::{RequestId, SessionId, Time};
use proto::{v1, v1::worker_message::Message};
use rand::Rng;

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
    /// Whether data and models are loaded.
    pub is_loaded: bool,
    /// The time of its first attempt to join since it lost its connection.
    pub joining_since: Time,
    /// The delay before the next attempt to join.
    pub back_off: Time,
    /// The time of the first answer that told it to retry later, because its worker id is taken or
    /// the run is full.
    pub retry_later_since: Option<Time>,

    /// Directives that the training thread has not begun.
    pub directives: VecDeque<v1::Directive>,
    /// The activity of the training thread.
    pub activity: Activity,
    /// Reports that wait for a session.
    pub unsent_reports: Vec<Message>,
    /// The number of the training thread's last scheduled wake-up; earlier ones are ignored.
    pub wake_up: u64,
    /// The latest generation whose rendezvous directive it has received.
    pub latest_generation: u64,
    /// The term of that generation.
    pub term: u64,
    /// The last abandoned generation; earlier ones are abandoned, too.
    pub abandoned_up_to: u64,
    /// The generation that it will release after the step in flight; 0 if none.
    pub halted_generation: u64,
    /// Whether its process has received a shutdown signal.
    pub is_leaving: bool,
    /// The last released generation; earlier ones are released, too.
    pub released_up_to: u64,
    /// The generation that it takes part in: it is a member of that generation's collective.
    pub generation: Option<u64>,
    /// The number of directives of that generation that it has begun.
    pub directives_begun: usize,
    /// The number of all-reduces that it has entered in that generation.
    pub round: u64,
    /// Its share of the batch of its last step: the first sample, and one past the last.
    pub share: (u32, u32),
    /// Its rank in that generation.
    pub rank: u32,
    /// The duration of its last step without the all-reduce.
    pub compute_time: Time,
    /// The position of its training state; none if it has no state.
    pub position: Option<v1::Position>,
    /// Its training state.
    pub history: UpdateHistory,
    /// The id of the run to which its state belongs; empty before it has joined a run.
    pub run_id: String,
    /// Whether it claims falsely that its state belongs to the run that it joins.
    pub forges_run_id: bool,

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

/// The state of a worker's connection to the coordinator.
#[derive(Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Waits for the next attempt to join.
    Disconnected,
    /// Waits for the response to this join request.
    Joining(RequestId),
    /// Has a reservation, and loads data and models.
    Loading { session_token: String },
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
            is_loaded: false,
            joining_since: Time::ZERO,
            back_off: Time::ZERO,
            retry_later_since: None,
            directives: VecDeque::new(),
            activity: Activity::Idle,
            wake_up: 0,
            latest_generation: 0,
            term: 0,
            abandoned_up_to: 0,
            halted_generation: 0,
            is_leaving: false,
            released_up_to: 0,
            generation: None,
            directives_begun: 0,
            round: 0,
            share: (0, 0),
            unsent_reports: Vec::new(),
            rank: 0,
            compute_time: Time::ZERO,
            position: None,
            history: UpdateHistory::new(),
            run_id: String::new(),
            forges_run_id: false,
            step_duration,
            is_suspended: false,
            is_training_blocked: false,
            deferred_events: Vec::new(),
            repaired_at: Time::ZERO,
        }
    }

    /// Discards its training state, to take part in this run from the beginning.
    pub fn reset_for_run(&mut self, run_id: String) {
        (self.position, self.history, self.forges_run_id) = (None, UpdateHistory::new(), false);
        (self.latest_generation, self.term, self.abandoned_up_to, self.halted_generation, self.released_up_to) =
            (0, 0, 0, 0, 0);
        (self.is_loaded, self.run_id) = (false, run_id);
        (self.directives, self.unsent_reports) = (VecDeque::new(), Vec::new());
    }

    /// A new process that holds this worker's state. It requests the worker id of its machine.
    fn with_former_state(self, host: String, requested_worker_id: Option<u32>) -> Self {
        let Self {
            is_loaded, latest_generation, term, position, history, run_id, forges_run_id, step_duration, ..
        } = self;
        let new = Self::new(host, requested_worker_id, step_duration);
        Self {
            is_loaded,
            latest_generation,
            term,
            released_up_to: latest_generation,
            abandoned_up_to: latest_generation,
            position,
            history,
            run_id,
            forges_run_id,
            ..new
        }
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
        self.execute_directives(id);
    }
}
