//! A simulated worker: a process with a connection to the coordinator
//! ([`connection`](super::connection)) and a training thread ([`training`](super::training)).
//! Either of the two may be blocked.

use std::collections::VecDeque;

use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    History, WorkerId,
    world::{SimEvent, SimWorld},
};
use crate::run::{RequestId, SessionId, Time};

#[derive(Debug)]
pub struct Worker {
    pub host: String,
    /// The id that it was started with.
    pub wanted: Option<u32>,
    /// The id that the coordinator assigned.
    pub rank: Option<u32>,
    pub link: Link,
    /// Whether data and models are loaded: then it joins under its previous id.
    pub loaded: bool,
    /// Since when it tries to join.
    pub asks_since: Time,
    /// The pause before the next attempt.
    pub pause: Time,
    /// When it was first told that its id is taken.
    pub held_since: Option<Time>,

    pub orders: VecDeque<v1::Directive>,
    pub doing: Activity,
    /// Reports that wait for a session.
    pub unsent: Vec<Message>,
    /// The number of the current wake-up of the training thread; earlier ones are ignored.
    pub task: u64,
    /// The latest generation whose rendezvous it was told of.
    pub told: u64,
    /// The term of that generation.
    pub term: u64,
    /// Generations up to this one were abandoned.
    pub abandoned: u64,
    /// The generation that it is to release after what is in flight.
    pub halted: u64,
    /// Whether its process got a shutdown signal.
    pub leaves: bool,
    /// Generations up to this one are released.
    pub let_go: u64,
    /// The generation whose collective it is in.
    pub generation: Option<u64>,
    /// The number of directives of that generation that it has begun.
    pub begun: usize,
    /// The number of rounds in that generation after the rendezvous.
    pub rounds: u64,
    /// Its share of the batch.
    pub share: (u32, u32),
    /// Its rank in that generation.
    pub rank_within: u32,
    /// The computing time of its last step.
    pub computed: Time,
    pub position: Option<v1::Position>,
    pub history: History,
    /// The id of the run that its state belongs to; empty before it has joined one.
    pub run_id: String,
    /// Whether it claims that its state belongs to whatever run it joins.
    pub lies: bool,

    /// The duration of a step.
    pub pace: Time,
    /// Whether the whole process is suspended.
    pub frozen: bool,
    /// Whether the training thread is blocked.
    pub stuck: bool,
    /// Events that were due meanwhile.
    pub missed: Vec<SimEvent>,
    /// When its last fault was repaired.
    pub well_since: Time,
}

/// The state of its connection to the coordinator.
#[derive(Debug, PartialEq, Eq)]
pub enum Link {
    /// It is about to join.
    None,
    Asking(RequestId),
    Loading {
        token: String,
    },
    Attached(SessionId),
    /// The connection is lost; the training thread has not released its generation yet.
    LettingGo(SessionId),
}

/// The activity of the training thread.
#[derive(Debug, Default)]
pub enum Activity {
    #[default]
    Nothing,
    /// Checks that peers are reachable.
    Reaching(v1::Rendezvous),
    /// Waits for the others.
    Meeting(v1::Rendezvous),
    /// Receives the source's state.
    Adopting(v1::Rendezvous),
    Computing(v1::Train),
    /// Waits for the others.
    Reducing(v1::Train),
    /// All gradients have arrived.
    Applying(v1::Train),
    Captioning(v1::Evaluate),
    Copying(v1::Checkpoint),
    /// Waits for the saver, which is still busy.
    HandingOver,
    /// Waits for the saver; the run is complete.
    Finishing,
}

/// An event that wakes a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It is time to join.
    Ask,
    /// A join had no answer.
    Unanswered(RequestId),
    /// Data and models are loaded.
    Loaded,
    /// It is time for a heartbeat.
    Beat(SessionId),
    /// The process gets a shutdown signal.
    Leave,
    /// The step in flight has taken too long to wait for.
    LetGo(SessionId),
    /// The training thread has completed its activity.
    Done,
    /// The training thread's collective has failed.
    Broken,
}

impl Worker {
    pub fn new(host: String, wanted: Option<u32>, pace: Time) -> Self {
        Self {
            host,
            wanted,
            rank: wanted,
            link: Link::None,
            loaded: false,
            asks_since: Time::ZERO,
            pause: Time::ZERO,
            held_since: None,
            orders: VecDeque::new(),
            doing: Activity::Nothing,
            task: 0,
            told: 0,
            term: 0,
            abandoned: 0,
            halted: 0,
            leaves: false,
            let_go: 0,
            generation: None,
            begun: 0,
            rounds: 0,
            share: (0, 0),
            unsent: Vec::new(),
            rank_within: 0,
            computed: Time::ZERO,
            position: None,
            history: History::new(),
            run_id: String::new(),
            lies: false,
            pace,
            frozen: false,
            stuck: false,
            missed: Vec::new(),
            well_since: Time::ZERO,
        }
    }

    /// Drops its state, and starts again in another run.
    pub fn begin_anew(&mut self, run_id: String) {
        (self.position, self.history, self.lies) = (None, History::new(), false);
        (self.told, self.term, self.abandoned, self.halted, self.let_go) = (0, 0, 0, 0, 0);
        (self.loaded, self.run_id) = (false, run_id);
        (self.orders, self.unsent) = (VecDeque::new(), Vec::new());
    }

    /// A worker that has only its state left from another run. Its machine determines the id that
    /// it asks for.
    fn left_over(self, host: String, wanted: Option<u32>) -> Self {
        let Self { loaded, told, term, position, history, run_id, lies, pace, .. } = self;
        let left = Self::new(host, wanted, pace);
        Self { loaded, told, term, let_go: told, abandoned: told, position, history, run_id, lies, ..left }
    }

    pub fn session(&self) -> Option<SessionId> {
        if let Link::Attached(session) = self.link { Some(session) } else { None }
    }
}

impl SimWorld {
    /// Starts a worker process.
    pub fn start_worker(&mut self, host: String, wanted: Option<u32>) -> WorkerId {
        self.last_worker += 1;
        let id = WorkerId(self.last_worker);
        let pace = self.scenario.pace;
        // Some of these join when others have trained for long.
        let comes = !self.left_over.is_empty() && self.rng.random();
        let worker = match self.left_over.pop_if(|_| comes) {
            Some(worker) => worker.left_over(host, wanted),
            None => Worker::new(host, wanted, pace),
        };
        self.workers.insert(id, worker);
        self.come_back(id);
        id
    }

    /// A worker process ends by itself, when its saver has finished.
    pub fn retire_worker(&mut self, id: WorkerId) {
        let saves = self.savers.remove(&id);
        self.end_worker(id, false);
        self.savers.extend(saves.map(|saves| (id, saves)));
    }

    /// Removes a worker process. Others notice, unless its machine vanished silently.
    pub fn end_worker(&mut self, id: WorkerId, silently: bool) {
        self.savers.remove(&id);
        let Some(worker) = self.workers.remove(&id) else { return };
        if let Link::Attached(session) = worker.link {
            if silently {
                self.reset(session, false, false);
            } else {
                self.send_up(session, super::network::Up::End);
            }
        }
        if let Some(generation) = worker.generation {
            self.let_go(id, generation, silently);
        }
        self.vacate(&worker.host);
    }

    /// Schedules the next wake-up of the training thread; replaces an earlier one.
    pub fn wake(&mut self, id: WorkerId, delay: Time, wake: Wake) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.task += 1;
        let task = worker.task;
        self.agenda.after(delay, SimEvent::Training { worker: id, task, wake });
    }

    /// Stores an event for a blocked worker until it resumes.
    pub fn unless_missed(&mut self, id: Option<WorkerId>, due: SimEvent) -> Option<SimEvent> {
        let Some(worker) = id.and_then(|id| self.workers.get_mut(&id)) else { return Some(due) };
        if worker.frozen || (worker.stuck && matches!(due, SimEvent::Training { .. })) {
            worker.missed.push(due);
            return None;
        }
        Some(due)
    }

    /// Resumes a blocked worker.
    pub fn thaw(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.frozen, worker.stuck) = (false, false);
        for due in std::mem::take(&mut worker.missed) {
            self.agenda.after(Time::ZERO, due);
        }
        self.go_on(id);
    }
}
