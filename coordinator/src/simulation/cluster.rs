//! The simulated cluster: all processes, the network and the disk between them, and the event
//! queue.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hasher},
};

use dico_engine::{
    Event, Outcome, RefusalKind, RequestId, SessionId, Time, image_ranges::ImageRange, plan::Position, state::State,
};
use proto::v1;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    ProcessId,
    collective::Collective,
    coordinator::Coordinator,
    disk::Disk,
    event_queue::EventQueue,
    faults::{Fault, Faults},
    invariants::Invariants,
    network::{Network, PacketToCoordinator, PacketToWorker},
    saver::SaveQueue,
    scenario::Scenario,
    worker::{WakeReason, Worker},
};

/// An event in the queue.
#[derive(Debug)]
pub enum SimEvent {
    /// The clock of a coordinator process ticks.
    Tick { incarnation: u64 },
    /// A coordinator process receives a shutdown signal.
    StopCoordinator { incarnation: u64 },
    /// A coordinator process starts.
    StartCoordinator,
    /// A coordinator process has scored an evaluation.
    Scored { incarnation: u64, event: Event },
    /// A join request reaches the coordinator.
    JoinRequest { worker: ProcessId, request: RequestId, join: v1::JoinRequest },
    /// The response to a join request reaches the worker.
    JoinResponse { worker: ProcessId, request: RequestId, response: Result<v1::JoinResponse, RefusalKind> },
    /// A packet reaches the coordinator in a session.
    ToCoordinator { session: SessionId, packet: PacketToCoordinator },
    /// A packet reaches a worker in a session.
    ToWorker { session: SessionId, packet: PacketToWorker },
    /// A worker's connection wakes up.
    ConnectionWakeUp { worker: ProcessId, reason: WakeReason },
    /// A worker's training thread wakes up. Ignored if `wake_up` is not its current wake-up number.
    TrainingWakeUp { worker: ProcessId, wake_up: u64, reason: WakeReason },
    /// A worker's saver has finished its current save.
    SaveDone { worker: ProcessId },
    /// A machine without a worker starts one.
    StartWorker { machine: usize },
    /// A random fault is injected.
    InjectFault,
    /// The fault of a worker is repaired.
    RepairFault(Fault, ProcessId),
    /// From now on no faults are injected.
    StopFaults,
}

/// What is done with the trace, which has a line for each event and each record.
pub enum Trace {
    /// Discards all lines.
    Off,
    /// Prints each line.
    Print,
    /// Hashes all lines, to compare two runs.
    Hash(DefaultHasher),
}

/// A simulated cluster. Its `impl` blocks are in the files of the parts that they simulate.
pub struct Cluster {
    pub scenario: Scenario,
    /// The random number generator of all random choices.
    pub rng: ChaCha8Rng,
    pub queue: EventQueue<SimEvent>,
    pub trace: Trace,
    /// The number of executed events.
    pub event_count: u64,
    /// The last id of a request or session.
    last_id: u64,
    /// The id of the worker process that started last.
    pub last_process_id: u64,
    pub coordinator: Coordinator,
    pub network: Network,
    pub workers: BTreeMap<ProcessId, Worker>,
    /// The save queues of live processes, and of processes that end once their saves are done.
    pub savers: BTreeMap<ProcessId, SaveQueue>,
    /// Collectives by generation.
    pub collectives: BTreeMap<u64, Collective>,
    pub disk: Disk,
    pub faults: Faults,
    pub invariants: Invariants,
    /// The worker and the images of each captioned range, in the order of captioning.
    pub captioned_ranges: Vec<(ProcessId, ImageRange)>,
    /// The outcome of the run; none while it continues.
    pub outcome: Option<Outcome>,
    /// The run's id.
    pub run_id: String,
    /// Whether the first coordinator started with an older copy of the journal.
    pub is_restored_from_backup: bool,
    /// The number of workers whose state the coordinator refused.
    pub refused_states: u64,
    /// Workers that hold a state from an earlier cluster. A process that starts takes over one of
    /// these states, with probability 1/2.
    pub former_workers: Vec<Worker>,
}

impl Cluster {
    /// A cluster with a running coordinator.
    pub fn new(seed: u64, trace: Trace, scenario: impl FnOnce(&mut ChaCha8Rng) -> Scenario) -> Self {
        let mut cluster = Self::without_coordinator(seed, trace, scenario);
        cluster.start_coordinator();
        cluster
    }

    /// A cluster whose coordinator has not started.
    pub fn without_coordinator(seed: u64, trace: Trace, scenario: impl FnOnce(&mut ChaCha8Rng) -> Scenario) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            scenario: scenario(&mut rng),
            rng,
            queue: EventQueue::default(),
            trace,
            event_count: 0,
            last_id: 0,
            last_process_id: 0,
            coordinator: Coordinator::new(),
            network: Network::default(),
            workers: BTreeMap::new(),
            savers: BTreeMap::new(),
            collectives: BTreeMap::new(),
            disk: Disk::default(),
            faults: Faults::default(),
            invariants: Invariants::default(),
            captioned_ranges: Vec::new(),
            outcome: None,
            run_id: format!("run {seed}"),
            is_restored_from_backup: false,
            refused_states: 0,
            former_workers: Vec::new(),
        }
    }

    /// The state of the live coordinator's engine.
    pub fn state(&self) -> &State {
        self.coordinator.engine.as_ref().expect("the coordinator is running").state()
    }

    /// The position up to which the live coordinator has granted steps.
    pub fn end_of_granted_steps(&self) -> Position {
        dico_engine::end_of_granted_steps(self.state())
    }

    /// A new id of a request or session.
    pub fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The random time after which a supervisor restarts a process.
    pub fn random_restart_delay(&mut self) -> Time {
        Time::from_millis(self.rng.random_range(100..5_000))
    }

    pub fn trace(&mut self, line: fmt::Arguments<'_>) {
        match &mut self.trace {
            Trace::Off => {}
            Trace::Print => println!("{:>10.3} {line}", self.queue.now().as_secs_f64()),
            Trace::Hash(hasher) => hasher.write(format!("{:?} {line}", self.queue.now()).as_bytes()),
        }
    }

    /// Executes the next event that is due by `until`. Returns whether there was one.
    pub fn step(&mut self, until: Time) -> bool {
        let Some(event) = self.queue.pop_until(until) else { return false };
        self.event_count += 1;
        self.trace(format_args!("{event:?}"));
        self.dispatch(event);
        true
    }

    /// Passes an event to its handler, or defers it while the process that receives it is blocked.
    fn dispatch(&mut self, event: SimEvent) {
        let worker = match &event {
            SimEvent::JoinResponse { worker, .. }
            | SimEvent::ConnectionWakeUp { worker, .. }
            | SimEvent::TrainingWakeUp { worker, .. }
            | SimEvent::SaveDone { worker } => Some(*worker),
            SimEvent::ToWorker { session, .. } => self.network.sessions.get(session).map(|session| session.worker),
            _ => None,
        };
        let event = self.defer_if_worker_blocked(worker, event);
        let Some(event) = event.and_then(|event| self.defer_if_coordinator_blocked(event)) else { return };
        match event {
            SimEvent::Tick { incarnation } => self.tick(incarnation),
            SimEvent::StartCoordinator => self.start_coordinator(),
            SimEvent::StopCoordinator { incarnation } if incarnation == self.coordinator.incarnation => {
                self.handle_event(Event::Shutdown);
            }
            SimEvent::Scored { incarnation, event } if incarnation == self.coordinator.incarnation => {
                self.handle_event(event);
            }
            SimEvent::StopCoordinator { .. } | SimEvent::Scored { .. } => {}
            SimEvent::JoinRequest { worker, request, join } => self.receive_join_request(worker, request, join),
            SimEvent::JoinResponse { worker, request, response } => {
                self.handle_join_response(worker, request, response);
            }
            SimEvent::ToCoordinator { session, packet } if !self.network.is_lost_to_coordinator(session, &packet) => {
                self.receive_from_worker(session, packet);
            }
            SimEvent::ToWorker { session, packet } if !self.network.is_lost_to_worker(session, &packet) => {
                if let Some(worker) = worker {
                    self.receive_from_coordinator(worker, session, packet);
                }
            }
            SimEvent::ToCoordinator { .. } | SimEvent::ToWorker { .. } => {}
            SimEvent::ConnectionWakeUp { worker, reason } => self.handle_connection_wake_up(worker, reason),
            SimEvent::TrainingWakeUp { worker, wake_up, reason } => {
                self.handle_training_wake_up(worker, wake_up, reason);
            }
            SimEvent::SaveDone { worker } => self.complete_save(worker),
            SimEvent::StartWorker { machine } => self.start_worker_on(machine),
            SimEvent::InjectFault => self.inject_random_fault(),
            SimEvent::RepairFault(fault, worker) => self.repair_fault(fault, worker),
            SimEvent::StopFaults => self.stop_faults(),
        }
    }
}
