//! The session of a simulated worker: joins, attaches, passes directives on and reports back, sends
//! heartbeats, and reconnects.

use proto::{PROTOCOL_VERSION, v1, v1::directive::Directive, v1::worker_message::Message};
use rand::Rng;

use super::{
    IMAGES, WorkerId,
    network::{Direction, Down, Up},
    worker::{Activity, Link, Wake},
    world::{SimEvent, SimWorld},
};
use crate::run::{RefusalKind, RequestId, SessionId, Time};

/// The first and the longest pause between attempts to join.
const BACK_OFF: [Time; 2] = [Time::from_millis(100), Time::from_secs(5)];
/// A worker gives up after this long without an answer.
const PATIENCE: Time = Time::from_secs(60);
/// How long a worker waits for an answer.
const ANSWER_WITHIN: Time = Time::from_secs(5);

/// The data of all workers.
fn data_set() -> v1::DataSet {
    v1::DataSet { train_images: 7, train_captions: 31, validation_images: IMAGES, ..Default::default() }
}

impl SimWorld {
    /// Begins to join again.
    pub fn come_back(&mut self, id: WorkerId) {
        let now = self.agenda.now();
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.asks_since, worker.pause, worker.held_since) = (now, Time::ZERO, None);
        self.ask(id);
    }

    /// Sends a join request. Request and answer may both be lost.
    fn ask(&mut self, id: WorkerId) {
        let request = RequestId(self.next_number());
        let (now, latency, lost) = (self.agenda.now(), self.latency(), self.is_lost(id, Direction::Up));
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.link = Link::Asking(request);
        let join = v1::JoinRequest {
            protocol_version: PROTOCOL_VERSION,
            rank: worker.rank,
            host: worker.host.clone(),
            idempotency_key: format!("{id:?} since {:?}", worker.asks_since),
            waited_ms: worker.held_since.map_or(0, |since| (now - since).as_millis() as u64),
            ..Default::default()
        };
        if !lost {
            self.agenda.after(latency, SimEvent::Ask { worker: id, request, join });
        }
        self.agenda.after(ANSWER_WITHIN, SimEvent::Connection { worker: id, wake: Wake::Unanswered(request) });
    }

    fn is_lost(&mut self, id: WorkerId, way: Direction) -> bool {
        self.network.is_cut(id, way) || (self.network.lossy && self.rng.random_ratio(1, 4))
    }

    /// Sends the coordinator's answer.
    pub fn answer(&mut self, id: WorkerId, request: RequestId, answer: Result<v1::JoinResponse, RefusalKind>) {
        if !self.is_lost(id, Direction::Down) {
            let latency = self.latency();
            self.agenda.after(latency, SimEvent::Answer { worker: id, request, answer });
        }
    }

    pub fn hear_answer(&mut self, id: WorkerId, request: RequestId, answer: Result<v1::JoinResponse, RefusalKind>) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if worker.link != Link::Asking(request) {
            return;
        }
        match answer {
            Ok(place) => {
                worker.rank = Some(place.rank);
                match worker.lies {
                    true => worker.run_id = place.run_id,
                    false if worker.run_id != place.run_id => worker.begin_anew(place.run_id),
                    false => {}
                }
                if worker.loaded {
                    self.attach(id, place.session_token);
                } else {
                    worker.link = Link::Loading { token: place.session_token };
                    let takes = Time::from_millis(self.rng.random_range(50..self.scenario.loading));
                    self.agenda.after(takes, SimEvent::Connection { worker: id, wake: Wake::Loaded });
                }
            }
            // If the id is still taken by this worker's own lost session, it becomes free soon;
            // otherwise another worker has it.
            Err(RefusalKind::AlreadyExists) if worker.loaded => {
                if self.agenda.now() - worker.asks_since >= 2 * self.scenario.heartbeat_timeout() {
                    worker.rank = worker.wanted;
                }
                self.ask_later(id);
            }
            Err(RefusalKind::Held) => {
                worker.held_since.get_or_insert(self.agenda.now());
                self.ask_later(id);
            }
            Err(RefusalKind::Unavailable) => self.ask_later(id),
            Err(refusal) => {
                let expected = [RefusalKind::AlreadyExists, RefusalKind::ResourceExhausted];
                let over = refusal == RefusalKind::Over && self.invariants.over;
                assert!(over || expected.contains(&refusal), "a correct worker was refused a place: {refusal:?}");
                self.retire_worker(id);
            }
        }
    }

    fn ask_later(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if self.agenda.now() - worker.asks_since > PATIENCE {
            self.retire_worker(id);
            return;
        }
        worker.link = Link::None;
        worker.pause = (worker.pause * 2).clamp(BACK_OFF[0], BACK_OFF[1]);
        let pause = worker.pause;
        self.agenda.after(pause, SimEvent::Connection { worker: id, wake: Wake::Ask });
    }

    fn attach(&mut self, id: WorkerId, token: String) {
        let session = SessionId(self.next_number());
        self.open(session, id);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.link = Link::Attached(session);
        let attach = v1::Attach {
            session_token: token,
            store_address: format!("{}:{}", worker.host, id.0),
            data_set: Some(data_set()),
            holds: worker.position,
            generation: worker.told,
            term: worker.term,
            run_id: worker.run_id.clone(),
        };
        self.invariants.held.insert(session, worker.position.map(|_| worker.history.clone()));
        let unsent = std::mem::take(&mut worker.unsent);
        let leaves = worker.leaves;
        self.send_up(session, Up::Attach(attach));
        if leaves {
            self.say_leaving(id, session);
        }
        unsent.into_iter().for_each(|message| self.send_up(session, Up::Message(message)));
        self.beat(id, session);
    }

    pub fn woken(&mut self, id: WorkerId, wake: Wake) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match (wake, &worker.link) {
            (Wake::Ask, Link::None) => self.ask(id),
            (Wake::Unanswered(request), Link::Asking(asked)) if request == *asked => {
                worker.held_since = None;
                self.ask_later(id);
            }
            (Wake::Loaded, Link::Loading { token }) => {
                let token = token.clone();
                worker.loaded = true;
                self.attach(id, token);
            }
            (Wake::Leave, link) => {
                worker.leaves = true;
                match *link {
                    // The worker is no member yet: it can leave at once.
                    _ if !worker.loaded => self.end_worker(id, false),
                    Link::Attached(session) => self.say_leaving(id, session),
                    _ => {}
                }
            }
            (Wake::LetGo(session), Link::LettingGo(lost)) if session == *lost => {
                let told = worker.told;
                self.abandon(id, told);
            }
            (Wake::Beat(session), Link::Attached(own)) if session == *own => self.beat(id, session),
            _ => {}
        }
    }

    /// Sends a heartbeat, and checks the heartbeat timeout.
    fn beat(&mut self, id: WorkerId, session: SessionId) {
        let heartbeat_timeout = self.scenario.heartbeat_timeout();
        let since = |way| self.network.cuts.get(&(id, way)).copied();
        let cut = since(Direction::Up).into_iter().chain(since(Direction::Down)).chain(self.coordinator.frozen).min();
        if cut.is_some_and(|since| self.agenda.now() - since >= heartbeat_timeout) {
            self.disconnected(id);
            return;
        }
        let worker = &self.workers[&id];
        let phase = match &worker.doing {
            Activity::Nothing | Activity::Finishing => v1::Phase::Idle,
            Activity::Reaching(_) | Activity::Meeting(_) | Activity::Adopting(_) => v1::Phase::Rendezvous,
            Activity::Computing(_) => v1::Phase::Compute,
            Activity::Reducing(_) | Activity::Applying(_) => v1::Phase::AllReduce,
            Activity::Captioning(_) => v1::Phase::Evaluate,
            Activity::Copying(_) | Activity::HandingOver => v1::Phase::Checkpoint,
        };
        let beat = v1::Heartbeat { phase: phase.into(), position: worker.position };
        self.send_up(session, Up::Message(Message::Heartbeat(beat)));
        let interval = (heartbeat_timeout / 5).min(Time::from_secs(1));
        self.agenda.after(interval, SimEvent::Connection { worker: id, wake: Wake::Beat(session) });
    }

    /// Handles a message of the coordinator.
    pub fn hear(&mut self, id: WorkerId, session: SessionId, packet: Down) {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.link == Link::Attached(session)) else {
            return;
        };
        match packet {
            Down::Directive(directive) => match directive.directive {
                Some(Directive::Leave(_)) => self.retire_worker(id),
                Some(Directive::Halt(_)) if directive.generation >= worker.told => worker.halted = worker.told,
                Some(Directive::Rendezvous(v1::Rendezvous { term, .. })) => {
                    (worker.told, worker.term) = (directive.generation, term);
                    self.order(id, *directive);
                }
                Some(Directive::Abandon(_)) if directive.generation >= worker.told => {
                    self.abandon(id, directive.generation);
                    self.order(id, *directive);
                }
                _ => self.order(id, *directive),
            },
            // The run was over before this worker reconnected.
            Down::End(Some(RefusalKind::Over)) if self.invariants.over => self.retire_worker(id),
            Down::End(Some(RefusalKind::Disowned)) => {
                assert!(worker.lies || self.restored_backup, "a correct worker's state was refused");
                self.disowned += 1;
                let run_id = worker.run_id.clone();
                worker.begin_anew(run_id);
                self.disconnected(id);
            }
            Down::End(refusal) => {
                let expected = [None, Some(RefusalKind::Unauthenticated), Some(RefusalKind::Unavailable)];
                assert!(expected.contains(&refusal), "a correct worker's session was refused: {refusal:?}");
                self.disconnected(id);
            }
        }
    }

    fn say_leaving(&mut self, id: WorkerId, session: SessionId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.halted = worker.told;
        self.send_up(session, Up::Message(Message::Leaving(v1::Leaving { reason: "asked to end".to_owned() })));
    }

    /// The connection is lost: the training thread releases its generation, then the worker joins
    /// again. The other members may have lost the coordinator, too: the step in flight is finished
    /// if that is quick.
    pub fn disconnected(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let Link::Attached(session) = worker.link else { return };
        (worker.link, worker.halted) = (Link::LettingGo(session), worker.told);
        let directive = Some(Directive::Abandon(v1::Abandon::default()));
        let abandon = v1::Directive { generation: worker.told, directive };
        self.send_up(session, Up::End);
        self.agenda
            .after(self.scenario.heartbeat_timeout(), SimEvent::Connection { worker: id, wake: Wake::LetGo(session) });
        self.order(id, abandon);
    }

    /// Handles a report of the training thread.
    pub fn report(&mut self, id: WorkerId, message: Message) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        // A worker that is finished or has failed ends.
        let last = match &message {
            Message::Finished(_) => true,
            Message::Failed(failed) => failed.fatal,
            _ => false,
        };
        match worker.link {
            Link::Attached(session) => {
                if matches!(message, Message::Idle(_)) {
                    self.invariants.held.insert(session, worker.position.map(|_| worker.history.clone()));
                }
                self.send_up(session, Up::Message(message));
            }
            // The state, which the worker reports when it reconnects, contains the steps of this
            // report.
            Link::LettingGo(_) if matches!(&message, Message::Idle(idle) if idle.generation >= worker.told) => {
                self.come_back(id);
            }
            Link::LettingGo(_) => {}
            Link::None | Link::Asking(_) | Link::Loading { .. } => worker.unsent.push(message),
        }
        if last {
            self.retire_worker(id);
        }
    }
}
