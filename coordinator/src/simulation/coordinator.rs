//! The simulated coordinator process: the state machine, the journal, and crashes of both.
//!
//! A crash may happen between any two actions. After it, the journal has all records up to the last
//! one that must be durable, and a random number of the records after it.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use dico_engine::{
    Action, Command, Engine, Event, Outcome, RequestId, SessionId, Time, plan::Position, record::Record,
};
use journal::{EvaluatedCaption, Journal, ReadOnlyJournal};
use proto::{v1, v1::worker_message::Message};
use rand::Rng;

use super::{
    ProcessId,
    cluster::{Cluster, SimEvent},
    network::{PacketToCoordinator, PacketToWorker},
    score,
};
use crate::{
    captions::{CollectedCaptions, EvaluationItem, ReportableScores},
    checkpoints,
};

/// The interval of ticks.
const TICK_INTERVAL: Time = Time::from_millis(500);

/// The coordinator: the process that runs at present, and the journal, which survives its crash.
pub struct Coordinator {
    /// The state machine; none while no process runs.
    pub engine: Option<Engine>,
    /// The number of the coordinator process: 1 for the first one.
    pub incarnation: u64,
    /// The run's clock: it advances by at most [`TICK_INTERVAL`] between two events.
    pub clock: Time,
    /// The time of the last event.
    last_event_at: Time,
    /// The time at which the process was suspended; none if it is not suspended.
    pub suspended_since: Option<Time>,
    /// Whether the process waits for a write to the journal.
    pub is_waiting_for_journal: bool,
    /// Events that arrived while the process was suspended or waited for the journal.
    deferred_events: Vec<SimEvent>,
    /// The captions of the evaluation in progress; none before the first process.
    captions: Option<CollectedCaptions>,
    /// The captions of all evaluations that were scored, by the number of the evaluation.
    pub scored_captions: BTreeMap<u64, Vec<EvaluatedCaption>>,
    /// All records. A crash loses a random number of those since the last durable one.
    pub records: Vec<Record>,
    /// The number of `records` up to the last durable one: no crash can lose them.
    durable_count: usize,
    journal: Option<Journal>,
    /// The number of `records` that are in `journal`.
    written_count: usize,
    /// The workers that wait for the response to a join request.
    pending_joins: BTreeMap<RequestId, ProcessId>,
    /// The number of further actions after which the process crashes; none if it does not.
    pub actions_until_crash: Option<u32>,
}

impl Coordinator {
    pub fn new() -> Self {
        Self {
            engine: None,
            incarnation: 0,
            clock: Time::ZERO,
            last_event_at: Time::ZERO,
            suspended_since: None,
            is_waiting_for_journal: false,
            deferred_events: Vec::new(),
            captions: None,
            scored_captions: BTreeMap::new(),
            records: Vec::new(),
            durable_count: 0,
            journal: None,
            written_count: 0,
            pending_joins: BTreeMap::new(),
            actions_until_crash: None,
        }
    }

    /// A coordinator that starts with this journal.
    pub fn with_journal(journal: Journal) -> Self {
        Self { journal: Some(journal), ..Self::new() }
    }
}

impl Cluster {
    /// Starts a coordinator process with the content of the journal.
    pub fn start_coordinator(&mut self) {
        self.coordinator.captions = Some(CollectedCaptions::new(ReportableScores::of_run(&self.scenario.file)));
        let Coordinator { journal, scored_captions, records, durable_count, written_count, .. } = &mut self.coordinator;
        let journal = journal.get_or_insert_with(|| {
            Journal::in_memory(&self.scenario.file).expect("the operating system provides random numbers")
        });
        write_records(journal, &records[*written_count..], scored_captions);
        *written_count = records.len();
        *durable_count = records.len();
        let mut restored = journal.restore().expect("the journal is intact");
        // The id of a real run is random. Here it depends on the seed.
        restored.run_id.clone_from(&self.run_id);
        let listing = self.list_checkpoints();
        checkpoints::reconcile(&self.scenario.file, &mut restored, listing);
        let term = self.rng.random();
        self.coordinator.engine = Some(Engine::new(self.scenario.file.clone(), restored, term));
        self.coordinator.incarnation += 1;
        (self.coordinator.clock, self.coordinator.last_event_at) = (Time::ZERO, self.queue.now());
        self.check_restored();
        self.queue.schedule_after(TICK_INTERVAL, SimEvent::Tick { incarnation: self.coordinator.incarnation });
    }

    /// Takes the journal, with all records.
    pub fn take_journal(&mut self) -> ReadOnlyJournal {
        let Coordinator { journal, scored_captions, records, written_count, .. } = &mut self.coordinator;
        let mut journal = journal.take().expect("a coordinator was started");
        write_records(&mut journal, &records[*written_count..], scored_captions);
        *written_count = records.len();
        journal.into_read_only()
    }

    /// Kills the coordinator process and schedules the next one. A random number of the records
    /// since the last durable one is lost.
    pub fn kill_coordinator(&mut self, restart_after: Time) {
        if self.coordinator.engine.is_none() {
            return;
        }
        let kept_records = self.rng.random_range(self.coordinator.durable_count..=self.coordinator.records.len());
        self.coordinator.records.truncate(kept_records);
        self.end_coordinator(restart_after);
    }

    /// Ends the coordinator process: closes its sessions and schedules the next process.
    fn end_coordinator(&mut self, restart_after: Time) {
        self.coordinator.engine = None;
        self.coordinator.actions_until_crash = None;
        (self.coordinator.suspended_since, self.coordinator.is_waiting_for_journal) = (None, false);
        self.coordinator.deferred_events.clear();
        self.coordinator.pending_joins.clear();
        let incarnation = self.coordinator.incarnation;
        let sessions = self.network.sessions.iter().filter(|(_, session)| session.incarnation == incarnation);
        for session in sessions.map(|(session, _)| *session).collect::<Vec<_>>() {
            if self.rng.random() {
                let (coordinator_notices, worker_notices) = (false, true);
                self.reset_session(session, coordinator_notices, worker_notices);
            } else {
                self.send_to_worker(session, PacketToWorker::End(None));
            }
        }
        self.queue.schedule_after(restart_after, SimEvent::StartCoordinator);
    }

    /// Defers an event for the coordinator while its process is suspended or waits for the journal.
    /// Returns other events.
    pub fn defer_if_coordinator_blocked(&mut self, event: SimEvent) -> Option<SimEvent> {
        let is_for_coordinator = matches!(
            event,
            SimEvent::Tick { .. }
                | SimEvent::StopCoordinator { .. }
                | SimEvent::Scored { .. }
                | SimEvent::JoinRequest { .. }
                | SimEvent::ToCoordinator { .. }
        );
        if is_for_coordinator && (self.coordinator.suspended_since.is_some() || self.coordinator.is_waiting_for_journal)
        {
            self.coordinator.deferred_events.push(event);
            return None;
        }
        Some(event)
    }

    /// Resumes a coordinator that is suspended or waits for the journal.
    pub fn resume_coordinator(&mut self) {
        (self.coordinator.suspended_since, self.coordinator.is_waiting_for_journal) = (None, false);
        for event in std::mem::take(&mut self.coordinator.deferred_events) {
            self.queue.schedule_after(Time::ZERO, event);
        }
    }

    /// Handles a tick, and sometimes resumes a paused run as an operator would.
    pub fn tick(&mut self, incarnation: u64) {
        if self.coordinator.incarnation == incarnation && self.coordinator.engine.is_some() {
            self.handle_event(Event::Tick);
            if self.invariants.is_paused && self.scenario.is_resumed && self.rng.random_ratio(1, 10) {
                self.send_command(Command::Resume);
            }
            self.check_progress();
            self.queue.schedule_after(TICK_INTERVAL, SimEvent::Tick { incarnation });
        }
    }

    /// Sends an operator's command, if a coordinator runs and is not blocked.
    pub fn send_command(&mut self, command: Command) {
        let is_blocked = self.coordinator.suspended_since.is_some() || self.coordinator.is_waiting_for_journal;
        let Some(engine) = self.coordinator.engine.as_ref().filter(|_| !is_blocked) else { return };
        if command == Command::Evaluate {
            self.invariants.requested_evaluations.insert(dico_engine::end_of_granted_steps(engine.state()));
        }
        let request = RequestId(self.next_id());
        self.handle_event(Event::Control { request, command });
    }

    /// Handles a join request that reaches the coordinator.
    pub fn receive_join_request(&mut self, worker: ProcessId, request: RequestId, join: v1::JoinRequest) {
        if self.coordinator.engine.is_none() {
            self.send_join_response(worker, request, Err(dico_engine::RefusalKind::Unavailable));
            return;
        }
        self.coordinator.pending_joins.insert(request, worker);
        let generated_join_key = format!("join key {}", request.0);
        self.handle_event(Event::Join { request, address: ip_address(&join.host), generated_join_key, join });
    }

    /// Handles a packet that reaches the coordinator in a session.
    pub fn receive_from_worker(&mut self, session: SessionId, packet: PacketToCoordinator) {
        let incarnation = self.network.sessions.get(&session).map(|session| session.incarnation);
        if incarnation != Some(self.coordinator.incarnation) || self.coordinator.engine.is_none() {
            // The session belongs to an earlier incarnation.
            self.send_to_worker(session, PacketToWorker::End(None));
            return;
        }
        self.handle_event(match packet {
            PacketToCoordinator::Attach(attach) => Event::Attach { session, attach },
            PacketToCoordinator::Message(message) => Event::Message { session, message },
            PacketToCoordinator::End => Event::Closed { session },
        });
    }

    /// Passes an event to the state machine, executes its actions, passes the answers to them, and
    /// checks the invariants.
    pub fn handle_event(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(mut event) = next.take() {
            let items = match &mut event {
                Event::Message { message: Message::EvaluationItems(report), .. } => std::mem::take(&mut report.items),
                _ => Vec::new(),
            };
            next = self.handle_event_with(event, items);
        }
    }

    /// Passes an event with these captions to the state machine, executes its actions, and checks
    /// the invariants. Returns the answer to an action.
    fn handle_event_with(&mut self, event: Event, mut items: Vec<v1::EvaluationItem>) -> Option<Event> {
        let engine = self.coordinator.engine.as_mut()?;
        let now = self.queue.now();
        self.coordinator.clock += (now - self.coordinator.last_event_at).min(TICK_INTERVAL);
        self.coordinator.last_event_at = now;
        let mut answer = None;
        for action in engine.on_event(self.coordinator.clock, event) {
            if self.coordinator.actions_until_crash == Some(0) {
                self.check_committed();
                let restart_after = self.random_restart_delay();
                self.kill_coordinator(restart_after);
                return None;
            }
            self.coordinator.actions_until_crash = self.coordinator.actions_until_crash.map(|actions| actions - 1);
            match action {
                Action::KeepCaptions { session, range, has_more } => {
                    let captions = self.coordinator.captions.as_mut()?;
                    answer = match captions.add(range, std::mem::take(&mut items), has_more) {
                        Ok(()) => (!has_more).then_some(Event::CaptionsKept { range }),
                        Err(violation) => Some(Event::Violation { session, violation }),
                    };
                }
                action => self.execute_action(action),
            }
        }
        self.check_committed();
        answer
    }

    fn execute_action(&mut self, action: Action) {
        match action {
            Action::Admit { request, response } => {
                if let Some(worker) = self.coordinator.pending_joins.remove(&request) {
                    // The run file would fill the trace, and simulated workers do not read it.
                    self.send_join_response(
                        worker,
                        request,
                        Ok(v1::JoinResponse { run_file: String::new(), ..response }),
                    );
                }
            }
            Action::Refuse { request, refusal } => {
                if let Some(worker) = self.coordinator.pending_joins.remove(&request) {
                    self.send_join_response(worker, request, Err(refusal.kind));
                }
            }
            Action::Accept { .. } => {}
            Action::Send { session, directive } => {
                self.check_sent(&directive);
                self.send_to_worker(session, PacketToWorker::Directive(Box::new(directive)));
            }
            Action::Close { session, refusal } => {
                self.send_to_worker(session, PacketToWorker::End(refusal.map(|refusal| refusal.kind)));
            }
            Action::Record(record) => {
                self.trace(format_args!("{record:?}"));
                self.check_record(&record);
                let must_be_durable = record.must_be_durable();
                self.coordinator.records.push(record);
                if must_be_durable {
                    self.coordinator.durable_count = self.coordinator.records.len();
                }
            }
            Action::CollectCaptions { evaluation } => {
                self.coordinator.captions.iter_mut().for_each(|captions| captions.begin(evaluation));
            }
            // Needs the captions of the event.
            Action::KeepCaptions { .. } => {}
            Action::Score { evaluation, captions_file } => {
                assert!(captions_file.starts_with(self.scenario.file.output.join("captions")));
                let items = self.coordinator.captions.as_mut().map(CollectedCaptions::take_items).unwrap_or_default();
                let captioned = captioned_state(&items, self.scenario.decodable_image_stride);
                self.check_captions(&captioned);
                let metrics = [("cider".to_owned(), score(self.scenario.salt, captioned.position))].into();
                let event = Event::Scored { evaluation, metrics };
                let captions = items.into_iter().map(EvaluationItem::into_evaluated).collect();
                self.coordinator.scored_captions.insert(evaluation, captions);
                self.queue.schedule_after(
                    self.scenario.scoring_time,
                    SimEvent::Scored { incarnation: self.coordinator.incarnation, event },
                );
            }
            Action::DeleteCheckpoint(name) => self.delete_checkpoint(&name),
            Action::Exit(outcome) => self.exit_coordinator(outcome),
        }
    }

    /// Ends the coordinator process with an outcome. If the scenario resumes runs, the next process
    /// is scheduled; else, or when the run is finished, this is the outcome of the run.
    fn exit_coordinator(&mut self, outcome: Outcome) {
        self.trace(format_args!("the coordinator exits: {outcome:?}"));
        self.coordinator.durable_count = self.coordinator.records.len();
        if let Outcome::Failed(reason) = &outcome {
            self.check_failure(reason);
        }
        if outcome == Outcome::Finished || !self.scenario.is_resumed {
            assert_eq!(self.outcome.replace(outcome), None, "a run has one outcome");
        } else {
            let restart_after = self.random_restart_delay();
            self.end_coordinator(restart_after);
        }
    }
}

/// Writes records to the journal, with the captions of their evaluations.
fn write_records(journal: &mut Journal, records: &[Record], captions: &BTreeMap<u64, Vec<EvaluatedCaption>>) {
    for record in records {
        if let Record::Evaluated { evaluation, .. } = record {
            journal.stage_captions(*evaluation, captions.get(evaluation).cloned().unwrap_or_default());
        }
    }
    journal.write(records).expect("a database in memory can be written");
}

/// The IP address of a host: parsed from its name if that is an address, else a hash of the name.
fn ip_address(host: &str) -> IpAddr {
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    host.parse().unwrap_or_else(|_| (hasher.finish() as u32).to_be_bytes().into())
}

/// The state that an evaluation captioned.
#[derive(Debug, PartialEq, Eq)]
pub struct CaptionedState {
    pub position: Position,
    /// See [`digest`](super::training::digest).
    pub digest: String,
}

/// Reads from the captions which state they are of. Asserts that all captions are of the same
/// state, and that each decodable image has one caption.
fn captioned_state(items: &[EvaluationItem], decodable_image_stride: usize) -> CaptionedState {
    let images: Vec<Option<u64>> = items.iter().map(|item| item.image_id).collect();
    let decodable_from = |begin: u64| {
        let end = super::VALIDATION_IMAGES.min(begin + proto::IMAGES_PER_EVALUATION_RANGE);
        (begin..end).step_by(decodable_image_stride)
    };
    let expected = (0..super::VALIDATION_IMAGES)
        .step_by(proto::IMAGES_PER_EVALUATION_RANGE as usize)
        .flat_map(decodable_from)
        .map(Some);
    assert_eq!(images, expected.collect::<Vec<_>>(), "each decodable image has one caption");
    assert!(items.iter().all(|item| item.caption == items[0].caption), "all captions are of one state");
    let words: Vec<&str> = items[0].caption.split(' ').collect();
    let [stage, step, digest] = words[..] else { panic!("not a caption of a simulated worker: {words:?}") };
    let position = Position { stage: stage.parse().unwrap(), step: step.parse().unwrap() };
    CaptionedState { position, digest: digest.to_owned() }
}
