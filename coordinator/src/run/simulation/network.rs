//! The simulated network: sessions between workers and the coordinator, each of two ordered
//! streams, as with TCP.
//!
//! A stream can be delayed, held up by a cut, or reset with all messages in flight. Messages of an
//! old session may arrive after the worker has joined again. A join is a separate call: its request
//! or answer may be lost.

use std::collections::{BTreeMap, VecDeque};

use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    WorkerId,
    world::{SimEvent, SimWorld},
};
use crate::run::{RefusalKind, SessionId, Time};

/// The direction of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From a worker to the coordinator.
    Up,
    /// From the coordinator to a worker.
    Down,
    /// Between a worker and all other workers.
    Peers,
}

/// From a worker to the coordinator.
#[derive(Debug)]
pub enum Up {
    Attach(v1::Attach),
    Message(Message),
    End,
}

/// From the coordinator to a worker.
#[derive(Debug)]
pub enum Down {
    Directive(Box<v1::Directive>),
    End(Option<RefusalKind>),
}

#[derive(Debug)]
struct Stream<P> {
    /// The arrival time of the last message in flight; later messages arrive no earlier.
    last: Time,
    /// Messages that wait for the end of a cut.
    held: VecDeque<P>,
    /// Whether the messages in flight are lost.
    reset: bool,
}

impl<P> Default for Stream<P> {
    fn default() -> Self {
        Self { last: Time::ZERO, held: VecDeque::new(), reset: false }
    }
}

#[derive(Debug)]
pub struct Session {
    pub worker: WorkerId,
    /// The number of the coordinator process that the session belongs to.
    pub life: u64,
    up: Stream<Up>,
    down: Stream<Down>,
}

#[derive(Debug, Default)]
pub struct Network {
    pub sessions: BTreeMap<SessionId, Session>,
    /// The cuts, each with its begin.
    pub cuts: BTreeMap<(WorkerId, Direction), Time>,
    /// Whether some messages have long delays.
    pub erratic: bool,
    /// When such delays last ended.
    pub erratic_until: Time,
    /// Whether join requests and answers may be lost.
    pub lossy: bool,
}

impl Network {
    /// Whether messages sent on a session are lost.
    pub fn is_reset(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_none_or(|session| session.up.reset)
    }

    pub fn is_cut(&self, worker: WorkerId, way: Direction) -> bool {
        self.cuts.contains_key(&(worker, way))
    }

    /// Whether a message that arrives now on a session's stream was lost.
    pub fn is_lost_up(&self, session: SessionId, packet: &Up) -> bool {
        self.sessions.get(&session).is_none_or(|session| session.up.reset && !matches!(packet, Up::End))
    }

    /// See [`Network::is_lost_up`].
    pub fn is_lost_down(&self, session: SessionId, packet: &Down) -> bool {
        self.sessions.get(&session).is_none_or(|session| session.down.reset && !matches!(packet, Down::End(_)))
    }
}

impl SimWorld {
    pub fn latency(&mut self) -> Time {
        if self.network.erratic && self.rng.random_ratio(1, 50) {
            Time::from_millis(self.rng.random_range(100..3_000))
        } else {
            Time::from_millis(self.rng.random_range(1..20))
        }
    }

    pub fn open(&mut self, session: SessionId, worker: WorkerId) {
        let life = self.coordinator.life;
        self.network.sessions.insert(session, Session { worker, life, up: Stream::default(), down: Stream::default() });
    }

    pub fn send_up(&mut self, session: SessionId, packet: Up) {
        let latency = self.latency();
        let Some(Session { worker, up, .. }) = self.network.sessions.get_mut(&session) else { return };
        if self.network.cuts.contains_key(&(*worker, Direction::Up)) {
            up.held.push_back(packet);
        } else {
            up.last = up.last.max(self.agenda.now() + latency);
            self.agenda.at(up.last, SimEvent::Up { session, packet });
        }
    }

    pub fn send_down(&mut self, session: SessionId, packet: Down) {
        let latency = self.latency();
        let Some(Session { worker, down, .. }) = self.network.sessions.get_mut(&session) else { return };
        if self.network.cuts.contains_key(&(*worker, Direction::Down)) {
            down.held.push_back(packet);
        } else {
            down.last = down.last.max(self.agenda.now() + latency);
            self.agenda.at(down.last, SimEvent::Down { session, packet });
        }
    }

    /// Loses all messages in flight; each side notices the end of its stream only if told so.
    pub fn reset(&mut self, session: SessionId, noticed_above: bool, noticed_below: bool) {
        let Some(Session { up, down, .. }) = self.network.sessions.get_mut(&session) else { return };
        (up.reset, down.reset) = (true, true);
        up.held.clear();
        down.held.clear();
        if noticed_above {
            self.send_up(session, Up::End);
        }
        if noticed_below {
            self.send_down(session, Down::End(None));
        }
    }

    pub fn cut(&mut self, worker: WorkerId, way: Direction) {
        let now = self.agenda.now();
        self.network.cuts.entry((worker, way)).or_insert(now);
    }

    /// Ends a cut: messages that were held up are sent on.
    pub fn mend(&mut self, worker: WorkerId, way: Direction) {
        if self.network.cuts.remove(&(worker, way)).is_none() {
            return;
        }
        let own = self.network.sessions.iter().filter(|(_, session)| session.worker == worker);
        for session in own.map(|(session, _)| *session).collect::<Vec<_>>() {
            let Some(Session { up, down, .. }) = self.network.sessions.get_mut(&session) else { continue };
            match way {
                Direction::Up => {
                    std::mem::take(&mut up.held).into_iter().for_each(|packet| self.send_up(session, packet))
                }
                Direction::Down => {
                    std::mem::take(&mut down.held).into_iter().for_each(|packet| self.send_down(session, packet));
                }
                Direction::Peers => {}
            }
        }
        if way == Direction::Peers {
            self.release_all();
        }
    }
}
