//! The simulated world: all processes, the network and the disk between them, and the event queue.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hasher},
};

use proto::v1;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    WorkerId,
    agenda::Agenda,
    collective::Collective,
    coordinator::Coordinator,
    disk::Disk,
    faults::{Fault, Faults},
    invariants::Invariants,
    network::{Down, Network, Up},
    saver::Saves,
    scenario::Scenario,
    worker::{Wake, Worker},
};
use crate::run::{Event, Outcome, RefusalKind, RequestId, Run, SessionId, Time, captions::Images};

/// An event in the queue.
#[derive(Debug)]
pub enum SimEvent {
    /// The coordinator's clock.
    Tick { life: u64 },
    /// The coordinator is asked to stop.
    Stop { life: u64 },
    /// A coordinator starts.
    Start,
    /// An evaluation is scored.
    Scored { life: u64, event: Event },
    /// A join request reaches the coordinator.
    Ask { worker: WorkerId, request: RequestId, join: v1::JoinRequest },
    /// The answer to a join reaches the worker.
    Answer { worker: WorkerId, request: RequestId, answer: Result<v1::JoinResponse, RefusalKind> },
    /// A message reaches the coordinator on a session's stream.
    Up { session: SessionId, packet: Up },
    /// A message reaches a worker on a session's stream.
    Down { session: SessionId, packet: Down },
    /// A worker's connection is woken.
    Connection { worker: WorkerId, wake: Wake },
    /// A worker's training thread is woken.
    Training { worker: WorkerId, task: u64, wake: Wake },
    /// A worker's saver has finished a copy.
    Saved { worker: WorkerId },
    /// A machine without a worker starts one.
    Hire { machine: usize },
    /// A fault is injected.
    Fault,
    /// A fault is repaired.
    Mend(Fault, WorkerId),
    /// No further faults are injected.
    Calm,
}

/// What to do with the trace of all events.
pub enum Trace {
    Dropped,
    Printed,
    Hashed(DefaultHasher),
}

pub struct SimWorld {
    pub scenario: Scenario,
    pub rng: ChaCha8Rng,
    pub agenda: Agenda<SimEvent>,
    pub trace: Trace,
    pub events: u64,
    number: u64,
    pub last_worker: u64,
    pub coordinator: Coordinator,
    pub network: Network,
    pub workers: BTreeMap<WorkerId, Worker>,
    /// The savers of live processes, and of those that only wait for them.
    pub savers: BTreeMap<WorkerId, Saves>,
    pub collectives: BTreeMap<u64, Collective>,
    pub disk: Disk,
    pub faults: Faults,
    pub invariants: Invariants,
    /// The worker and the images of each range of captions, in order.
    pub captioned: Vec<(WorkerId, Images)>,
    pub outcome: Option<Outcome>,
    /// The run's id.
    pub run_id: String,
    /// Whether the coordinator started with an older copy of the journal.
    pub restored_backup: bool,
    /// The number of workers whose state was refused.
    pub disowned: u64,
    /// Workers of another run, which join before new ones are started.
    pub left_over: Vec<Worker>,
}

impl SimWorld {
    /// A new world with a running coordinator.
    pub fn new(seed: u64, trace: Trace, scenario: impl FnOnce(&mut ChaCha8Rng) -> Scenario) -> Self {
        let mut world = Self::without_coordinator(seed, trace, scenario);
        world.start_coordinator();
        world
    }

    pub fn without_coordinator(seed: u64, trace: Trace, scenario: impl FnOnce(&mut ChaCha8Rng) -> Scenario) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Self {
            scenario: scenario(&mut rng),
            rng,
            agenda: Agenda::default(),
            trace,
            events: 0,
            number: 0,
            last_worker: 0,
            coordinator: Coordinator::new(),
            network: Network::default(),
            workers: BTreeMap::new(),
            savers: BTreeMap::new(),
            collectives: BTreeMap::new(),
            disk: Disk::default(),
            faults: Faults::default(),
            invariants: Invariants::default(),
            captioned: Vec::new(),
            outcome: None,
            run_id: format!("run {seed}"),
            restored_backup: false,
            disowned: 0,
            left_over: Vec::new(),
        }
    }

    /// The state machine of the live coordinator.
    pub fn run(&self) -> &Run {
        self.coordinator.run.as_ref().expect("the coordinator lives")
    }

    pub fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    /// The time in which operators or supervisors restart something.
    pub fn some_time(&mut self) -> Time {
        Time::from_millis(self.rng.random_range(100..5_000))
    }

    pub fn trace(&mut self, line: fmt::Arguments<'_>) {
        match &mut self.trace {
            Trace::Dropped => {}
            Trace::Printed => println!("{:>10.3} {line}", self.agenda.now().as_secs_f64()),
            Trace::Hashed(hasher) => hasher.write(format!("{:?} {line}", self.agenda.now()).as_bytes()),
        }
    }

    /// Executes the next event that is due by `until`. Returns false if there is none.
    pub fn step(&mut self, until: Time) -> bool {
        let Some(due) = self.agenda.next(until) else { return false };
        self.events += 1;
        self.trace(format_args!("{due:?}"));
        self.happen(due);
        true
    }

    fn happen(&mut self, due: SimEvent) {
        let worker = match &due {
            SimEvent::Answer { worker, .. }
            | SimEvent::Connection { worker, .. }
            | SimEvent::Training { worker, .. }
            | SimEvent::Saved { worker } => Some(*worker),
            SimEvent::Down { session, .. } => self.network.sessions.get(session).map(|session| session.worker),
            _ => None,
        };
        let Some(due) = self.unless_missed(worker, due).and_then(|due| self.unless_unread(due)) else { return };
        match due {
            SimEvent::Tick { life } => self.tick(life),
            SimEvent::Start => self.start_coordinator(),
            SimEvent::Stop { life } if life == self.coordinator.life => self.tell(Event::Shutdown),
            SimEvent::Scored { life, event } if life == self.coordinator.life => self.tell(event),
            SimEvent::Stop { .. } | SimEvent::Scored { .. } => {}
            SimEvent::Ask { worker, request, join } => self.asked(worker, request, join),
            SimEvent::Answer { worker, request, answer } => self.hear_answer(worker, request, answer),
            SimEvent::Up { session, packet } if !self.network.is_lost_up(session, &packet) => {
                self.told(session, packet)
            }
            SimEvent::Down { session, packet } if !self.network.is_lost_down(session, &packet) => {
                if let Some(worker) = worker {
                    self.hear(worker, session, packet);
                }
            }
            SimEvent::Up { .. } | SimEvent::Down { .. } => {}
            SimEvent::Connection { worker, wake } => self.woken(worker, wake),
            SimEvent::Training { worker, task, wake } => self.work(worker, task, wake),
            SimEvent::Saved { worker } => self.saved(worker),
            SimEvent::Hire { machine } => self.hire(machine),
            SimEvent::Fault => self.strike(),
            SimEvent::Mend(fault, worker) => self.put_right(fault, worker),
            SimEvent::Calm => self.calm_down(),
        }
    }
}
