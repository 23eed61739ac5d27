//! A simulated worker, as the others see it: a process with a connection to the coordinator ([`connection`](super::connection)) and a
//! training thread ([`training`](super::training)). Either of the two may stand still.

use std::collections::VecDeque;

use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    History, WorkerId,
    world::{Due, World},
};
use crate::run::{RequestId, SessionId, Time};

#[derive(Debug)]
pub struct Worker {
    pub host: String,
    /// The rank that it was started with.
    pub wanted: Option<u32>,
    /// The rank that it was given.
    pub rank: Option<u32>,
    pub link: Link,
    /// Data and models are loaded: it comes back to a place that it had.
    pub loaded: bool,
    /// Since when it asks for a place.
    pub asks_since: Time,
    /// Before it asks again.
    pub pause: Time,
    /// When it was first told that its place is held.
    pub held_since: Option<Time>,

    pub orders: VecDeque<v1::Directive>,
    pub doing: Doing,
    /// Reports that wait for a session.
    pub unsent: Vec<Message>,
    /// The wake-up that the training thread waits for; all earlier ones mean nothing any more.
    pub task: u64,
    /// The latest generation that it was told to meet.
    pub told: u64,
    /// The term of that generation.
    pub term: u64,
    /// Generations up to this one were abandoned.
    pub abandoned: u64,
    /// The generation that it is to let go of after what is in flight.
    pub halted: u64,
    /// Its process was asked to end.
    pub leaves: bool,
    /// Generations up to this one are over for it.
    pub let_go: u64,
    /// The generation whose collective it holds.
    pub generation: Option<u64>,
    /// Directives of that generation that it has begun.
    pub begun: usize,
    /// How often it came together with the others of that generation, after the meeting.
    pub rounds: u64,
    /// Its part of the batch.
    pub share: (u32, u32),
    /// Of that generation.
    pub rank_within: u32,
    /// How long its part of the last step took.
    pub computed: Time,
    pub position: Option<v1::Position>,
    pub history: History,
    /// The run that all of this is of; empty before it has joined one.
    pub run_id: String,
    /// It says that its state is of whatever run it comes to.
    pub lies: bool,

    /// How long a step takes.
    pub pace: Time,
    /// The whole process stands still.
    pub frozen: bool,
    /// The training thread stands still.
    pub stuck: bool,
    /// What was due meanwhile.
    pub missed: Vec<Due>,
    /// When the last thing that was wrong with it was put right.
    pub well_since: Time,
}

/// How it is connected to the coordinator.
#[derive(Debug, PartialEq, Eq)]
pub enum Link {
    /// It is about to ask for a place.
    None,
    Asking(RequestId),
    Loading {
        token: String,
    },
    Attached(SessionId),
    /// The connection is lost; the training thread has yet to let go of its generation.
    LettingGo(SessionId),
}

/// What the training thread does.
#[derive(Debug, Default)]
pub enum Doing {
    #[default]
    Nothing,
    /// Tries to reach the others.
    Reaching(v1::Rendezvous),
    /// Waits for the others.
    Meeting(v1::Rendezvous),
    /// Takes over the source's state.
    Adopting(v1::Rendezvous),
    Computing(v1::Train),
    /// Waits for the others.
    Reducing(v1::Train),
    /// Everybody's gradients are there.
    Applying(v1::Train),
    Captioning(v1::Evaluate),
    Copying(v1::Checkpoint),
    /// Waits for the saver, which has a copy yet to save.
    HandingOver,
    /// Waits for the saver, the run being complete.
    Finishing,
}

/// What wakes a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// It is time to ask for a place.
    Ask,
    /// Nobody answered.
    Unanswered(RequestId),
    /// Data and models are loaded.
    Loaded,
    /// It is time for a heartbeat.
    Beat(SessionId),
    /// The process is asked to end.
    Leave,
    /// It has waited long enough for the step in flight.
    LetGo(SessionId),
    /// The training thread is done with what it does.
    Done,
    /// The training thread finds its collective broken.
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
            doing: Doing::Nothing,
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

    /// Gives up its state, and begins anew in another run.
    pub fn begin_anew(&mut self, run_id: String) {
        (self.position, self.history, self.lies) = (None, History::new(), false);
        (self.told, self.term, self.abandoned, self.halted, self.let_go) = (0, 0, 0, 0, 0);
        (self.loaded, self.run_id) = (false, run_id);
        (self.orders, self.unsent) = (VecDeque::new(), Vec::new());
    }

    /// A worker that was left over by a run, and has let go of everything but its state. Its machine has the rank that it wants.
    fn left_over(self, host: String, wanted: Option<u32>) -> Self {
        let Self { loaded, told, term, position, history, run_id, lies, pace, .. } = self;
        let left = Self::new(host, wanted, pace);
        Self { loaded, told, term, let_go: told, abandoned: told, position, history, run_id, lies, ..left }
    }

    pub fn session(&self) -> Option<SessionId> {
        if let Link::Attached(session) = self.link { Some(session) } else { None }
    }
}

impl World {
    /// A worker process starts.
    pub fn start_worker(&mut self, host: String, wanted: Option<u32>) -> WorkerId {
        self.last_worker += 1;
        let id = WorkerId(self.last_worker);
        let pace = self.scenario.pace;
        // Some come when others have long been at work.
        let comes = !self.left_over.is_empty() && self.rng.random();
        let worker = match self.left_over.pop_if(|_| comes) {
            Some(worker) => worker.left_over(host, wanted),
            None => Worker::new(host, wanted, pace),
        };
        self.workers.insert(id, worker);
        self.come_back(id);
        id
    }

    /// A worker process ends by itself: not before its saver is through.
    pub fn retire_worker(&mut self, id: WorkerId) {
        let saves = self.savers.remove(&id);
        self.end_worker(id, false);
        self.savers.extend(saves.map(|saves| (id, saves)));
    }

    /// A worker process is gone. The others notice, unless its machine went with it.
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

    /// Plans the next wake-up of the training thread, instead of any that was planned.
    pub fn wake(&mut self, id: WorkerId, delay: Time, wake: Wake) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.task += 1;
        let task = worker.task;
        self.agenda.after(delay, Due::Training { worker: id, task, wake });
    }

    /// What is due at a worker that stands still is kept until it goes on.
    pub fn unless_missed(&mut self, id: Option<WorkerId>, due: Due) -> Option<Due> {
        let Some(worker) = id.and_then(|id| self.workers.get_mut(&id)) else { return Some(due) };
        if worker.frozen || (worker.stuck && matches!(due, Due::Training { .. })) {
            worker.missed.push(due);
            return None;
        }
        Some(due)
    }

    /// A worker that stood still goes on.
    pub fn thaw(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.frozen, worker.stuck) = (false, false);
        for due in std::mem::take(&mut worker.missed) {
            self.agenda.after(Time::ZERO, due);
        }
        self.go_on(id);
    }
}
