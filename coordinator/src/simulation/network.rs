//! The simulated network: sessions between workers and the coordinator. Each session consists of
//! two ordered streams, one for each direction, like a TCP connection.
//!
//! Packets of a stream can be delayed, can be held until a partition ends, or can be lost in a
//! reset. Packets of an old session may arrive after the worker has joined again. A join is a
//! separate call: its request or its response may be lost.

use std::collections::{BTreeMap, VecDeque};

use dico_engine::{RefusalKind, SessionId, Time};
use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    ProcessId,
    cluster::{Cluster, SimEvent},
};

/// The connections that a partition affects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    /// From a worker to the coordinator.
    ToCoordinator,
    /// From the coordinator to a worker.
    ToWorker,
    /// Between a worker and all other workers, both ways.
    BetweenWorkers,
}

/// A packet from a worker to the coordinator in a session.
#[derive(Debug)]
pub enum PacketToCoordinator {
    /// The first message of the session.
    Attach(v1::Attach),
    /// A later message.
    Message(Message),
    /// The worker has closed the session.
    End,
}

/// A packet from the coordinator to a worker in a session.
#[derive(Debug)]
pub enum PacketToWorker {
    /// A directive of the coordinator.
    Directive(Box<v1::Directive>),
    /// The coordinator has closed the session; with an error if it refuses the worker.
    End(Option<RefusalKind>),
}

/// One direction of a session. Packets arrive in the order in which they were sent.
#[derive(Debug)]
struct Stream<P> {
    /// The arrival time of the last packet sent; later packets arrive no earlier.
    last_arrival: Time,
    /// Packets that wait for the end of a partition.
    held_packets: VecDeque<P>,
    /// Whether the packets in flight are lost.
    is_reset: bool,
}

impl<P> Default for Stream<P> {
    fn default() -> Self {
        Self { last_arrival: Time::ZERO, held_packets: VecDeque::new(), is_reset: false }
    }
}

/// A session between a worker process and a coordinator process.
#[derive(Debug)]
pub struct Session {
    pub worker: ProcessId,
    /// The number of the coordinator process that the session belongs to.
    pub incarnation: u64,
    to_coordinator: Stream<PacketToCoordinator>,
    to_worker: Stream<PacketToWorker>,
}

/// The state of the network.
#[derive(Debug, Default)]
pub struct Network {
    pub sessions: BTreeMap<SessionId, Session>,
    /// The partitions, each with the time at which it began.
    pub partitions: BTreeMap<(ProcessId, Direction), Time>,
    /// Whether some packets have long delays.
    pub has_long_delays: bool,
    /// The time at which long delays last ended.
    pub long_delays_ended_at: Time,
    /// Whether join requests and responses may be lost.
    pub loses_joins: bool,
}

impl Network {
    /// Whether packets sent on a session are lost.
    pub fn is_reset(&self, session: SessionId) -> bool {
        self.sessions.get(&session).is_none_or(|session| session.to_coordinator.is_reset)
    }

    /// Whether a partition affects a worker's connections in this direction.
    pub fn is_partitioned(&self, worker: ProcessId, direction: Direction) -> bool {
        self.partitions.contains_key(&(worker, direction))
    }

    /// Whether a packet that would arrive now at the coordinator is lost.
    pub fn is_lost_to_coordinator(&self, session: SessionId, packet: &PacketToCoordinator) -> bool {
        self.sessions
            .get(&session)
            .is_none_or(|session| session.to_coordinator.is_reset && !matches!(packet, PacketToCoordinator::End))
    }

    /// Whether a packet that would arrive now at a worker is lost.
    pub fn is_lost_to_worker(&self, session: SessionId, packet: &PacketToWorker) -> bool {
        self.sessions
            .get(&session)
            .is_none_or(|session| session.to_worker.is_reset && !matches!(packet, PacketToWorker::End(_)))
    }
}

impl Cluster {
    /// A random delay of a packet.
    pub fn latency(&mut self) -> Time {
        if self.network.has_long_delays && self.rng.random_ratio(1, 50) {
            Time::from_millis(self.rng.random_range(100..3_000))
        } else {
            Time::from_millis(self.rng.random_range(1..20))
        }
    }

    /// Opens a session with the running coordinator process.
    pub fn open_session(&mut self, session: SessionId, worker: ProcessId) {
        let incarnation = self.coordinator.incarnation;
        self.network.sessions.insert(
            session,
            Session { worker, incarnation, to_coordinator: Stream::default(), to_worker: Stream::default() },
        );
    }

    /// Sends a packet; it waits while there is a partition.
    pub fn send_to_coordinator(&mut self, session: SessionId, packet: PacketToCoordinator) {
        let latency = self.latency();
        let Some(Session { worker, to_coordinator, .. }) = self.network.sessions.get_mut(&session) else { return };
        if self.network.partitions.contains_key(&(*worker, Direction::ToCoordinator)) {
            to_coordinator.held_packets.push_back(packet);
        } else {
            to_coordinator.last_arrival = to_coordinator.last_arrival.max(self.queue.now() + latency);
            self.queue.schedule_at(to_coordinator.last_arrival, SimEvent::ToCoordinator { session, packet });
        }
    }

    /// Sends a packet; it waits while there is a partition.
    pub fn send_to_worker(&mut self, session: SessionId, packet: PacketToWorker) {
        let latency = self.latency();
        let Some(Session { worker, to_worker, .. }) = self.network.sessions.get_mut(&session) else { return };
        if self.network.partitions.contains_key(&(*worker, Direction::ToWorker)) {
            to_worker.held_packets.push_back(packet);
        } else {
            to_worker.last_arrival = to_worker.last_arrival.max(self.queue.now() + latency);
            self.queue.schedule_at(to_worker.last_arrival, SimEvent::ToWorker { session, packet });
        }
    }

    /// Resets a session: all packets in flight are lost. The coordinator and the worker notice it
    /// only if their flag is set.
    pub fn reset_session(&mut self, session: SessionId, coordinator_notices: bool, worker_notices: bool) {
        let Some(Session { to_coordinator, to_worker, .. }) = self.network.sessions.get_mut(&session) else { return };
        (to_coordinator.is_reset, to_worker.is_reset) = (true, true);
        to_coordinator.held_packets.clear();
        to_worker.held_packets.clear();
        if coordinator_notices {
            self.send_to_coordinator(session, PacketToCoordinator::End);
        }
        if worker_notices {
            self.send_to_worker(session, PacketToWorker::End(None));
        }
    }

    /// Starts a partition; packets are held until [`Cluster::heal`].
    pub fn partition(&mut self, worker: ProcessId, direction: Direction) {
        let now = self.queue.now();
        self.network.partitions.entry((worker, direction)).or_insert(now);
    }

    /// Ends a partition and sends the held packets.
    pub fn heal(&mut self, worker: ProcessId, direction: Direction) {
        if self.network.partitions.remove(&(worker, direction)).is_none() {
            return;
        }
        let sessions = self.network.sessions.iter().filter(|(_, session)| session.worker == worker);
        for session in sessions.map(|(session, _)| *session).collect::<Vec<_>>() {
            let Some(Session { to_coordinator, to_worker, .. }) = self.network.sessions.get_mut(&session) else {
                continue;
            };
            match direction {
                Direction::ToCoordinator => std::mem::take(&mut to_coordinator.held_packets)
                    .into_iter()
                    .for_each(|packet| self.send_to_coordinator(session, packet)),
                Direction::ToWorker => {
                    std::mem::take(&mut to_worker.held_packets)
                        .into_iter()
                        .for_each(|packet| self.send_to_worker(session, packet));
                }
                Direction::BetweenWorkers => {}
            }
        }
        if direction == Direction::BetweenWorkers {
            self.complete_all_rounds();
        }
    }
}
