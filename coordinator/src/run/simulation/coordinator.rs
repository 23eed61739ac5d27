//! The simulated coordinator process: the state machine, the journal, and crashes of both.
//!
//! A crash may happen between any two actions. After it, the journal has all records up to the last
//! one that had to be durable, and as many of the rest as the disk had time for.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use proto::v1;
use rand::Rng;

use super::{
    WorkerId,
    network::{Down, Up},
    score,
    world::{SimEvent, SimWorld},
};
use crate::{
    checkpoints,
    journal::{Journal, history::History},
    run::{
        Action, Command, Event, Outcome, RequestId, Run, SessionId, Time, captions::Item, plan::Place, record::Record,
    },
};

/// Interval of ticks.
const TICK: Time = Time::from_millis(500);

pub struct Coordinator {
    /// None while the process is dead.
    pub run: Option<Run>,
    /// The number of the process.
    pub life: u64,
    /// The run's clock: it advances by at most [`TICK`] between two events.
    pub clock: Time,
    /// The time of the last event.
    turn: Time,
    /// Since when the process is suspended; none if it is not.
    pub frozen: Option<Time>,
    /// Whether the process waits for the journal.
    pub held_up: bool,
    /// Messages that arrive while it is suspended or waits.
    unread: Vec<SimEvent>,
    pub records: Vec<Record>,
    /// The index of the first record that may be lost in a crash.
    durable: usize,
    journal: Option<Journal>,
    /// The index of the first record that is not in the journal.
    unwritten: usize,
    /// The workers that wait for an answer.
    asking: BTreeMap<RequestId, WorkerId>,
    /// The process dies after this number of further actions.
    pub doomed: Option<u32>,
}

impl Coordinator {
    pub fn new() -> Self {
        Self {
            run: None,
            life: 0,
            clock: Time::ZERO,
            turn: Time::ZERO,
            frozen: None,
            held_up: false,
            unread: Vec::new(),
            records: Vec::new(),
            durable: 0,
            journal: None,
            unwritten: 0,
            asking: BTreeMap::new(),
            doomed: None,
        }
    }
}

impl SimWorld {
    /// Starts a coordinator process with the content of the journal.
    pub fn start_coordinator(&mut self) {
        let Coordinator { journal, records, durable, unwritten, .. } = &mut self.coordinator;
        let journal = journal.get_or_insert_with(|| {
            let connection = rusqlite::Connection::open_in_memory().expect("memory is there");
            Journal::new(connection, &self.scenario.file).expect("a fresh journal")
        });
        journal.write(&records[*unwritten..]).expect("memory is there");
        *unwritten = records.len();
        *durable = records.len();
        let mut restored = journal.restore().expect("a whole journal");
        // A real id is random; here it depends on the seed.
        restored.run_id.clone_from(&self.run_id);
        let listing = self.list_checkpoints();
        checkpoints::reconcile(&self.scenario.file, &mut restored, listing);
        let term = self.rng.random();
        self.coordinator.run = Some(Run::new(self.scenario.file.clone(), restored, term));
        self.coordinator.life += 1;
        (self.coordinator.clock, self.coordinator.turn) = (Time::ZERO, self.agenda.now());
        self.check_restored();
        self.agenda.after(TICK, SimEvent::Tick { life: self.coordinator.life });
    }

    /// The journal with all records.
    pub fn record(&mut self) -> History {
        let Coordinator { journal, records, unwritten, .. } = &mut self.coordinator;
        let mut journal = journal.take().expect("a coordinator was started");
        journal.write(&records[*unwritten..]).expect("memory is there");
        *unwritten = records.len();
        journal.into_history()
    }

    /// Kills the coordinator process, and restarts it after a while.
    pub fn kill_coordinator(&mut self, back_after: Time) {
        if self.coordinator.run.is_none() {
            return;
        }
        let kept = self.rng.random_range(self.coordinator.durable..=self.coordinator.records.len());
        self.coordinator.records.truncate(kept);
        self.end_coordinator(back_after);
    }

    fn end_coordinator(&mut self, back_after: Time) {
        self.coordinator.run = None;
        self.coordinator.doomed = None;
        (self.coordinator.frozen, self.coordinator.held_up) = (None, false);
        self.coordinator.unread.clear();
        self.coordinator.asking.clear();
        let life = self.coordinator.life;
        let own = self.network.sessions.iter().filter(|(_, session)| session.life == life);
        for session in own.map(|(session, _)| *session).collect::<Vec<_>>() {
            if self.rng.random() {
                self.reset(session, false, true);
            } else {
                self.send_down(session, Down::End(None));
            }
        }
        self.agenda.after(back_after, SimEvent::Start);
    }

    /// Stores a message for a suspended coordinator until it resumes.
    pub fn unless_unread(&mut self, due: SimEvent) -> Option<SimEvent> {
        let heard = matches!(
            due,
            SimEvent::Tick { .. }
                | SimEvent::Stop { .. }
                | SimEvent::Scored { .. }
                | SimEvent::Ask { .. }
                | SimEvent::Up { .. }
        );
        if heard && (self.coordinator.frozen.is_some() || self.coordinator.held_up) {
            self.coordinator.unread.push(due);
            return None;
        }
        Some(due)
    }

    /// Resumes a suspended coordinator.
    pub fn thaw_coordinator(&mut self) {
        (self.coordinator.frozen, self.coordinator.held_up) = (None, false);
        for due in std::mem::take(&mut self.coordinator.unread) {
            self.agenda.after(Time::ZERO, due);
        }
    }

    pub fn tick(&mut self, life: u64) {
        if self.coordinator.life == life && self.coordinator.run.is_some() {
            self.tell(Event::Tick);
            if self.invariants.paused && self.scenario.goes_on && self.rng.random_ratio(1, 10) {
                self.steer(Command::Resume);
            }
            self.check_progress();
            self.agenda.after(TICK, SimEvent::Tick { life });
        }
    }

    /// An operator sends a command, if a coordinator is there to receive it.
    pub fn steer(&mut self, command: Command) {
        let hears = self.coordinator.frozen.is_none() && !self.coordinator.held_up;
        let Some(run) = self.coordinator.run.as_ref().filter(|_| hears) else { return };
        if command == Command::Evaluate {
            self.invariants.asked.insert(run.ahead());
        }
        let request = RequestId(self.next_number());
        self.tell(Event::Control { request, command });
    }

    /// A join request reaches the coordinator.
    pub fn asked(&mut self, worker: WorkerId, request: RequestId, join: v1::JoinRequest) {
        if self.coordinator.run.is_none() {
            self.answer(worker, request, Err(crate::run::RefusalKind::Unavailable));
            return;
        }
        self.coordinator.asking.insert(request, worker);
        let token = format!("token {}", request.0);
        self.tell(Event::Join { request, address: address_of(&join.host), token, join });
    }

    /// A message reaches the coordinator on a stream.
    pub fn told(&mut self, session: SessionId, packet: Up) {
        let life = self.network.sessions.get(&session).map(|session| session.life);
        if life != Some(self.coordinator.life) || self.coordinator.run.is_none() {
            // The session belongs to an earlier process.
            self.send_down(session, Down::End(None));
            return;
        }
        self.tell(match packet {
            Up::Attach(attach) => Event::Attach { session, attach },
            Up::Message(message) => Event::Message { session, message },
            Up::End => Event::Closed { session },
        });
    }

    /// Passes an event to the state machine, executes its actions, and checks the invariants.
    pub fn tell(&mut self, event: Event) {
        let Some(run) = &mut self.coordinator.run else { return };
        let now = self.agenda.now();
        self.coordinator.clock += (now - self.coordinator.turn).min(TICK);
        self.coordinator.turn = now;
        for action in run.on_event(self.coordinator.clock, event) {
            if self.coordinator.doomed == Some(0) {
                self.check_committed();
                let back_after = self.some_time();
                self.kill_coordinator(back_after);
                return;
            }
            self.coordinator.doomed = self.coordinator.doomed.map(|left| left - 1);
            self.act(action);
        }
        self.check_committed();
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Admit { request, response } => {
                if let Some(worker) = self.coordinator.asking.remove(&request) {
                    // The run file would fill the trace, and workers have it already.
                    self.answer(worker, request, Ok(v1::JoinResponse { run_file: String::new(), ..response }));
                }
            }
            Action::Refuse { request, refusal } => {
                if let Some(worker) = self.coordinator.asking.remove(&request) {
                    self.answer(worker, request, Err(refusal.kind));
                }
            }
            Action::Done { .. } => {}
            Action::Send { session, directive } => {
                self.check_sent(&directive);
                self.send_down(session, Down::Directive(Box::new(directive)));
            }
            Action::Close { session, refusal } => {
                self.send_down(session, Down::End(refusal.map(|refusal| refusal.kind)))
            }
            Action::Record(record) => {
                self.trace(format_args!("{record:?}"));
                self.check_record(&record);
                let durable = record.must_be_durable();
                self.coordinator.records.push(record);
                if durable {
                    self.coordinator.durable = self.coordinator.records.len();
                }
            }
            Action::Score { evaluation, items, captions } => {
                assert!(captions.starts_with(self.scenario.file.output.join("captions")));
                let scored = scored_state(&items, self.scenario.stride);
                self.check_captions(&scored);
                let metrics = [("cider".to_owned(), score(self.scenario.salt, scored.place))].into();
                let event = Event::Scored { evaluation, metrics, items };
                self.agenda.after(self.scenario.scoring, SimEvent::Scored { life: self.coordinator.life, event });
            }
            Action::DeleteCheckpoint(name) => self.delete_checkpoint(&name),
            Action::Exit(outcome) => self.exit(outcome),
        }
    }

    fn exit(&mut self, outcome: Outcome) {
        self.trace(format_args!("the coordinator exits: {outcome:?}"));
        self.coordinator.durable = self.coordinator.records.len();
        if let Outcome::Failed(reason) = &outcome {
            self.check_failure(reason);
        }
        if outcome == Outcome::Finished || !self.scenario.goes_on {
            assert_eq!(self.outcome.replace(outcome), None, "a run ends once");
        } else {
            let back_after = self.some_time();
            self.end_coordinator(back_after);
        }
    }
}

/// The IP address of a host: the host itself if it is one, else derived from its name.
fn address_of(host: &str) -> IpAddr {
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    host.parse().unwrap_or_else(|_| (hasher.finish() as u32).to_be_bytes().into())
}

/// The state that an evaluation's captions are of.
#[derive(Debug, PartialEq, Eq)]
pub struct Captioned {
    pub place: Place,
    pub digest: String,
}

/// The captioned state. All captions must be of the same state, and there must be one for each
/// image.
fn scored_state(items: &[Item], stride: usize) -> Captioned {
    let images: Vec<Option<u64>> = items.iter().map(|item| item.image_id).collect();
    let legible = |begin: u64| (begin..super::IMAGES.min(begin + proto::EVALUATION_RANGE)).step_by(stride);
    let expected = (0..super::IMAGES).step_by(proto::EVALUATION_RANGE as usize).flat_map(legible).map(Some);
    assert_eq!(images, expected.collect::<Vec<_>>(), "every image is captioned once");
    assert!(items.iter().all(|item| item.caption == items[0].caption), "captions are of one state");
    let words: Vec<&str> = items[0].caption.split(' ').collect();
    let [stage, step, digest] = words[..] else { panic!("not a caption: {words:?}") };
    let place = Place { stage: stage.parse().unwrap(), step: step.parse().unwrap() };
    Captioned { place, digest: digest.to_owned() }
}
