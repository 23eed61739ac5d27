//! The state machine against simulated workers: random joins, deaths, failures, silence and restarts, and what must hold
//! whatever happens.
//!
//! A simulated worker holds the list of steps that its state has been through, and can only train a step when all members
//! of its generation have come as far, as an all-reduce demands. At the end every step must be in that list once, up to
//! where each stage ended. Its captions name its state, and scores depend on nothing else: so whatever is scored must be of
//! one state, and a stage with a metric must end at the step that a few lines of sequential code name.

mod oversight;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use proto::{PROTOCOL_VERSION, v1, v1::directive::Directive, v1::worker_message::Message};
use runfile::{GuardAction, Rule, RunFile, Stage};
use statistics::Summary;

use super::{
    Action, Event, Outcome, RequestId, Run, SessionId, Time,
    captions::{Images, Item},
    plan::{Ends, Place},
    record::{Happening, Record, Restored, Source},
    shares, testing,
};

/// Images of the validation split: three ranges.
const IMAGES: u64 = 120;

type History = Vec<Place>;

#[derive(Debug, Default)]
struct Worker {
    inbox: VecDeque<v1::Directive>,
    outbox: VecDeque<Message>,
    /// All directives it ever received, without those that end a generation.
    received: Vec<v1::Directive>,
    world: u32,
    rank: u32,
    generation: u64,
    position: Option<v1::Position>,
    history: History,
    open: bool,
    /// It was told to halt, or wants to go.
    halts: bool,
    /// What it had to say of that is in the all-reduce of the step in flight.
    brought: bool,
    /// A copy of the state that is being hashed and, by rank 0, written.
    saving: Option<Saving>,
}

#[derive(Clone, Debug)]
struct Saving {
    generation: u64,
    number: u64,
    name: String,
    history: History,
    writes: bool,
}

/// What all members of a generation share.
#[derive(Debug, Default)]
struct Collective {
    members: Vec<SessionId>,
    arrived: BTreeMap<SessionId, Place>,
    /// Steps into whose all-reduce somebody brought the wish to halt.
    halting: BTreeSet<Place>,
    /// The source's state, put here when the source arrives.
    state: Option<History>,
}

struct World {
    run: Run,
    file: RunFile,
    now: Time,
    next: u64,
    workers: BTreeMap<SessionId, Worker>,
    collectives: BTreeMap<u64, Collective>,
    checkpoints: BTreeMap<String, History>,
    /// Checkpoints that were being written when the coordinator died: the next one does not know of them.
    orphans: BTreeSet<String>,
    records: Vec<Record>,
    scoring: VecDeque<Event>,
    outcome: Option<Outcome>,
    live: Option<u64>,
    paused: bool,
    /// Stages that were ended.
    ends: Ends,
    /// What scores and statistics depend on, besides the state.
    salt: u64,
    /// The histories of those who were there when the run was finished.
    finals: Vec<History>,
    /// What workers were asked to caption, in order.
    asked: Vec<(SessionId, Vec<Images>)>,
    /// Nothing can be written.
    full: bool,
    /// Checkpoints that cannot be read any more.
    damaged: BTreeSet<String>,
    /// Whether there ever was such a one.
    ever_damaged: bool,
    /// Saves are finished only when nothing else can be done.
    lazy: bool,
}

/// Some score in 0..7 of a state.
fn score(salt: u64, at: Place) -> f64 {
    let mixed = (at.step + 31 * u64::from(at.stage) + 1).wrapping_mul(salt | 1);
    ((mixed ^ (mixed >> 7)) % 7) as f64
}

impl Worker {
    /// Lets go of a generation.
    fn idle(&mut self, generation: u64) {
        let saving = self.saving.as_ref().map(|saving| saving.number);
        self.outbox.push_back(Message::Idle(v1::Idle { generation, position: self.position, saving }));
        (self.generation, self.brought) = (0, false);
    }
}

impl World {
    fn new(file: RunFile) -> Self {
        Self {
            run: Run::new(file.clone(), Restored::default()),
            file,
            now: Time::ZERO,
            next: 0,
            workers: BTreeMap::new(),
            collectives: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            orphans: BTreeSet::new(),
            records: Vec::new(),
            scoring: VecDeque::new(),
            outcome: None,
            live: None,
            paused: false,
            ends: Ends::new(),
            salt: 0,
            finals: Vec::new(),
            asked: Vec::new(),
            full: false,
            damaged: BTreeSet::new(),
            ever_damaged: false,
            lazy: false,
        }
    }

    fn event(&mut self, event: Event) -> Option<v1::JoinResponse> {
        let mut admitted = None;
        for action in self.run.on_event(self.now, event) {
            match action {
                Action::Admit { response, .. } => admitted = Some(response),
                Action::Refuse { .. } => {}
                Action::Resumed { .. } => assert!(!self.paused, "it is remembered before it is said"),
                Action::Send { session, directive } => {
                    let goes_on = matches!(
                        directive.directive,
                        Some(
                            Directive::Train(_) | Directive::Evaluate(_) | Directive::Advance(_) | Directive::Finish(_)
                        )
                    );
                    assert!(!(self.paused && goes_on), "paused means that nothing goes on: {directive:?}");
                    if let Some(worker) = self.workers.get_mut(&session) {
                        worker.inbox.push_back(directive);
                    }
                }
                Action::Close { session, refusal } => {
                    assert_eq!(refusal, None, "a correct worker was refused");
                    if let Some(worker) = self.workers.get_mut(&session) {
                        worker.open = false;
                    }
                }
                Action::Record(record) => self.remember(record),
                Action::Score { evaluation, items, captions } => {
                    let metrics = [("cider".to_owned(), score(self.salt, scored_state(&items)))].into();
                    assert!(captions.starts_with(self.file.output.join("captions")));
                    self.scoring.push_back(Event::Scored { evaluation, metrics, items });
                }
                Action::DeleteCheckpoint(name) => {
                    let existed = self.checkpoints.remove(&name).is_some();
                    // One that is not on record was never complete: maybe nobody had begun.
                    let on_record = self.records.last() == Some(&Record::Deleted(name));
                    assert!(existed || !on_record, "what is on record exists until it is deleted");
                }
                Action::Exit(outcome) => {
                    assert_eq!(self.outcome.replace(outcome), None, "a run ends once");
                }
            }
        }
        admitted
    }

    fn remember(&mut self, record: Record) {
        match &record {
            Record::Formed { generation, .. } => {
                assert_eq!(self.live.replace(*generation), None, "one generation at a time");
                let formed = |other: &Record| matches!(other, Record::Formed { generation: earlier, .. } if earlier >= generation);
                assert!(!self.records.iter().any(formed), "generation numbers grow");
            }
            Record::Ended { generation, .. } => assert_eq!(self.live.take(), Some(*generation)),
            Record::Event { what: Happening::Paused, .. } => self.paused = true,
            Record::Event { what: Happening::Resumed, .. } => self.paused = false,
            Record::Event { what: Happening::StageEnded, detail } => {
                let number = |key: &str| detail[key].as_u64().unwrap();
                self.ends.insert(number("stage") as u32, number("step"));
            }
            Record::Event { what: Happening::Finished, .. } => {
                let last = self.run.last_generation;
                // Also whoever has failed since, and was not heard yet.
                let held = |worker: &&Worker| worker.position.is_some_and(|position| position.generation == last);
                let there = self.workers.values().filter(held);
                self.finals = there.map(|worker| worker.history.clone()).collect();
            }
            _ => {}
        }
        if let Record::Formed { start, source: Source::Checkpoint(name), .. } = &record {
            assert_eq!(self.checkpoints[name], self.way_to(*start), "a state of the present history");
        }
        self.records.push(record);
    }

    /// The steps that lead to a point of the run.
    fn way_to(&self, at: Place) -> History {
        let end = |stage: u32| *self.ends.get(&stage).unwrap_or(&self.file.stages[stage as usize].steps);
        let steps = |stage: u32, end: u64| (1..=end).map(move |step| Place { stage, step });
        (0..at.stage).flat_map(|stage| steps(stage, end(stage))).chain(steps(at.stage, at.step)).collect()
    }

    /// Where the run is over.
    fn end(&self) -> Place {
        let stage = self.file.stages.len() as u32 - 1;
        Place { stage, step: *self.ends.get(&stage).unwrap_or(&self.file.stages[stage as usize].steps) }
    }

    fn join(&mut self, holding: Option<(v1::Position, History)>) {
        self.next += 1;
        let session = SessionId(self.next);
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let token = format!("token {}", self.next);
        let event = Event::Join { request: RequestId(self.next), token, join };
        let Some(admitted) = self.event(event) else { return };
        let (position, history) = holding.unzip();
        let history = history.unwrap_or_default();
        self.workers.insert(session, Worker { open: true, position, history, ..Default::default() });
        let store_address = format!("host:{}", self.next);
        let data_set = Some(v1::DataSet { validation_images: IMAGES, ..Default::default() });
        let session_token = admitted.session_token;
        let attach = v1::Attach { session_token, store_address, holds: position, data_set };
        self.event(Event::Attach { session, attach });
    }

    fn resume(&mut self) {
        self.next += 1;
        self.event(Event::Resume { request: RequestId(self.next) });
        assert!(!self.paused || self.outcome.is_some());
    }

    fn die(&mut self, session: SessionId) -> Worker {
        let worker = self.workers.remove(&session).expect("the session is a worker's");
        self.event(Event::Closed { session });
        worker
    }

    /// Says what the workers held, should they come back.
    fn restart_coordinator(&mut self) -> Vec<(v1::Position, History)> {
        let held = std::mem::take(&mut self.workers).into_values();
        let held = held.filter_map(|worker| Some((worker.position?, worker.history))).collect();
        self.scoring.clear();
        self.live = None;
        // What need not be durable may be lost.
        let durable = self.records.iter().rposition(Record::must_be_durable).map_or(0, |last| last + 1);
        self.records.truncate(durable);
        let journal = rusqlite::Connection::open_in_memory().unwrap();
        let mut journal = crate::journal::Journal::new(journal, &self.file).unwrap();
        journal.write(&self.records).unwrap();
        self.run = Run::new(self.file.clone(), journal.restore().unwrap());
        let known = self.known_checkpoints();
        self.orphans.extend(self.checkpoints.keys().filter(|path| !known.contains(*path)).cloned());
        held
    }

    fn known_checkpoints(&self) -> BTreeSet<String> {
        self.run.checkpoints.values().map(|checkpoint| checkpoint.name.clone()).collect()
    }

    /// What is on disk is what the run knows of, but for orphans, and what cannot be read.
    fn check_checkpoints(&self) {
        let known = self.known_checkpoints();
        let there: BTreeSet<String> = self.checkpoints.keys().cloned().collect();
        assert!(known.is_subset(&there), "{known:?} are not all in {there:?}");
        let left: Vec<_> = there
            .difference(&known)
            .filter(|name| !self.orphans.contains(*name) && !self.damaged.contains(*name))
            .collect();
        assert!(left.is_empty(), "{left:?} are left over");
    }

    fn sessions(&self) -> Vec<SessionId> {
        self.workers.keys().copied().collect()
    }

    /// Lets the coordinator hear one message of a worker.
    fn deliver(&mut self, session: SessionId) -> bool {
        let Some(message) = self.workers.get_mut(&session).and_then(|worker| worker.outbox.pop_front()) else {
            return false;
        };
        self.event(Event::Message { session, message });
        true
    }

    fn score(&mut self) -> bool {
        let Some(event) = self.scoring.pop_front() else { return false };
        self.event(event);
        true
    }

    fn fail(&mut self, session: SessionId) {
        let Some(worker) = self.workers.get_mut(&session) else { return };
        if worker.generation == 0 || worker.inbox.iter().any(|directive| directive.generation != worker.generation) {
            return;
        }
        let generation = worker.generation;
        worker.outbox.push_back(Message::Failed(v1::Failed {
            generation,
            reason: "broken".into(),
            ..Default::default()
        }));
        worker.inbox.clear();
        worker.idle(generation);
    }

    /// A worker wants to go.
    fn leave(&mut self, session: SessionId) {
        if let Some(worker) = self.workers.get_mut(&session).filter(|worker| worker.open) {
            worker.halts = true;
            worker.outbox.push_back(Message::Leaving(v1::Leaving { reason: "preempted".into() }));
        }
    }

    /// Finishes a save that is under way.
    fn save(&mut self, session: SessionId) -> bool {
        let Some(worker) = self.workers.get_mut(&session) else { return false };
        let Some(Saving { generation, number, name, history, writes }) = worker.saving.take() else { return false };
        if writes && self.full {
            let failed = v1::CheckpointFailed { generation, checkpoint: number, reason: "no room".into() };
            worker.outbox.push_back(Message::CheckpointFailed(failed));
            return true;
        }
        let parameters_sha256 = format!("{:?}", history.len());
        if writes {
            self.damaged.remove(&name);
            if !worker.open {
                // It was given up with the worker.
                self.orphans.insert(name.clone());
            }
            self.checkpoints.insert(name, history);
        }
        let done = v1::CheckpointDone { generation, checkpoint: number, parameters_sha256 };
        worker.outbox.push_back(Message::CheckpointDone(done));
        true
    }

    /// Lets a worker do what it can about its first directive; whether it did anything.
    fn work(&mut self, session: SessionId) -> bool {
        let any = self.obey(session);
        let saved = (!any || !self.lazy) && self.save(session);
        any || saved
    }

    fn obey(&mut self, session: SessionId) -> bool {
        let Some(worker) = self.workers.get_mut(&session) else { return false };
        if !worker.open {
            let over = worker.saving.is_none();
            if over {
                self.die(session);
            }
            return over;
        }
        while let Some(index) = worker.inbox.iter().position(|d| matches!(d.directive, Some(Directive::Halt(_)))) {
            let halt = worker.inbox.remove(index).expect("it was found");
            worker.halts |= halt.generation == worker.generation;
        }
        // Whoever is told to let go does so at once, whatever else is in the queue.
        let abandon = worker.inbox.iter().position(|d| matches!(d.directive, Some(Directive::Abandon(_))));
        if let Some(index) = abandon {
            let generation = worker.inbox.drain(..=index).next_back().map_or(0, |directive| directive.generation);
            worker.idle(generation);
            return true;
        }
        let Some(front) = worker.inbox.front().cloned() else { return false };
        let number = front.generation;
        let ordered = matches!(
            front.directive,
            Some(Directive::Train(_) | Directive::Checkpoint(_) | Directive::Evaluate(_) | Directive::Advance(_))
        );
        if ordered && number != worker.generation {
            // Sent before the coordinator heard that this worker let go.
            worker.inbox.pop_front();
            return true;
        }
        let done = match front.directive.clone().expect("a directive says something") {
            Directive::Rendezvous(rendezvous) => self.meet(session, number, &rendezvous),
            Directive::Train(train) => self.train(session, number, &train),
            Directive::Checkpoint(checkpoint) => {
                let worker = self.workers.get_mut(&session).unwrap();
                let v1::Checkpoint { checkpoint, name } = checkpoint;
                let (history, writes) = (worker.history.clone(), worker.rank == 0);
                let saving = Saving { generation: number, number: checkpoint, name, history, writes };
                assert!(worker.saving.replace(saving).is_none(), "one save at a time");
                true
            }
            Directive::Evaluate(evaluate) => {
                let worker = self.workers.get_mut(&session).unwrap();
                let (generation, evaluation) = (number, evaluate.evaluation);
                let caption = format!("{:?}", worker.position.as_ref().map(|at| (at.stage, at.step)).unwrap());
                self.asked.push((session, evaluate.ranges.iter().map(|range| (*range).into()).collect()));
                let most = if worker.halts { 1 } else { usize::MAX };
                let halted = most < evaluate.ranges.len();
                for range in evaluate.ranges.into_iter().take(most) {
                    let item = |image| v1::EvaluationItem {
                        image: format!("image {image:03}"),
                        caption: caption.clone(),
                        image_id: Some(image),
                        ..Default::default()
                    };
                    let items = (range.begin..range.end).map(item).collect();
                    let range = Some(range);
                    worker.outbox.push_back(Message::EvaluationItems(v1::EvaluationItems {
                        generation,
                        evaluation,
                        range,
                        items,
                    }));
                }
                if halted {
                    worker.inbox.clear();
                    worker.idle(generation);
                    return true;
                }
                true
            }
            Directive::Advance(advance) => {
                let worker = self.workers.get_mut(&session).unwrap();
                let stage = advance.stage;
                worker.position = Some(v1::Position { stage, step: 0, generation: number });
                worker.outbox.push_back(Message::Advanced(v1::Advanced { generation: number, stage }));
                true
            }
            Directive::Finish(_) => {
                self.workers.get_mut(&session).unwrap().outbox.push_back(Message::Finished(v1::Finished {}));
                true
            }
            Directive::Leave(_) => {
                self.workers.get_mut(&session).unwrap().open = false;
                true
            }
            Directive::Abandon(_) | Directive::Halt(_) => unreachable!("handled above, or not sent"),
        };
        if done && let Some(worker) = self.workers.get_mut(&session) {
            let front = worker.inbox.pop_front().expect("it was there above");
            worker.received.push(front);
        }
        done
    }

    /// Takes over the source's state; waits until it is there.
    fn meet(&mut self, session: SessionId, number: u64, rendezvous: &v1::Rendezvous) -> bool {
        let worker = self.workers.get_mut(&session).unwrap();
        let collective = self.collectives.entry(number).or_default();
        let at = rendezvous.position.unwrap();
        if !collective.members.contains(&session) {
            collective.members.push(session);
            (worker.generation, worker.rank, worker.world) = (number, rendezvous.rank, rendezvous.world_size);
            worker.halts = false;
            if worker.rank == 0 && self.damaged.contains(&rendezvous.checkpoint) {
                let damaged_checkpoint = rendezvous.checkpoint.clone();
                let failed = v1::Failed {
                    generation: number,
                    reason: "damaged".into(),
                    damaged_checkpoint,
                    ..Default::default()
                };
                worker.outbox.push_back(Message::Failed(failed));
                worker.inbox.clear();
                worker.idle(number);
                return false;
            }
            if rendezvous.source_rank == Some(rendezvous.rank) {
                assert_eq!(
                    worker.position.as_ref().map(Place::from),
                    Some(Place::from(&at)),
                    "the source is at the place"
                );
                collective.state = Some(worker.history.clone());
            }
        }
        if collective.members.len() < rendezvous.world_size as usize {
            return false;
        }
        worker.history = match rendezvous.source_rank {
            Some(_) => collective.state.clone().expect("all have arrived, and so has the source"),
            None if rendezvous.checkpoint.is_empty() => History::new(),
            None => self.checkpoints[&rendezvous.checkpoint].clone(),
        };
        worker.position = Some(at);
        collective.arrived.insert(session, (&at).into());
        worker.outbox.push_back(Message::Ready(v1::Ready { generation: number, position: Some(at) }));
        true
    }

    /// Trains the first step of a grant that it has not trained yet, if all others have come as far; says whether the grant
    /// is done.
    fn train(&mut self, session: SessionId, number: u64, train: &v1::Train) -> bool {
        let worker = self.workers.get_mut(&session).unwrap();
        let batch = self.file.stages[train.stage as usize].batch;
        assert_eq!(shares::equal(batch, worker.world, worker.rank), train.share_begin..train.share_end);
        let at = Place::from(&worker.position.unwrap());
        assert!(at >= Place { stage: train.stage, step: train.first_step }, "steps are granted in order");
        let collective = self.collectives.get_mut(&number).unwrap();
        collective.arrived.insert(session, at);
        if worker.halts && !worker.brought {
            collective.halting.insert(at.after(1));
        }
        worker.brought = true;
        if collective.arrived.len() < worker.world as usize || collective.arrived.values().any(|other| *other < at) {
            return false;
        }
        let reached = at.after(1);
        worker.history.push(reached);
        let position = reached.in_generation(number);
        worker.position = Some(position);
        collective.arrived.insert(session, reached);
        let samples = train.share_end - train.share_begin;
        let kl = (&Summary::of([score(self.salt + 1, reached)])).into();
        worker.outbox.push_back(Message::StepDone(v1::StepDone {
            position: Some(position),
            loss_weight: 1.0,
            samples,
            summaries: [("kl".to_owned(), kl)].into(),
            ..Default::default()
        }));
        worker.brought = false;
        if collective.halting.contains(&reached) {
            worker.inbox.clear();
            worker.idle(number);
            return false;
        }
        reached.step == train.first_step + u64::from(train.steps)
    }

    /// Everybody does all that can be done, until nothing can.
    fn run_dry(&mut self) {
        loop {
            let mut any = self.score();
            for session in self.sessions() {
                // A step of a grant counts as work although the directive stays.
                let before = self.workers.get(&session).and_then(|worker| worker.position);
                any |= self.work(session);
                any |= self.workers.get(&session).and_then(|worker| worker.position) != before;
                while self.deliver(session) {
                    any = true;
                }
            }
            if !any {
                return;
            }
        }
    }

    /// All members of a generation were told the same, in the same order.
    fn check_directives(&self) {
        let mut of: BTreeMap<u64, Vec<Vec<Directive>>> = BTreeMap::new();
        for worker in self.workers.values() {
            let mut mine: BTreeMap<u64, Vec<Directive>> = BTreeMap::new();
            for directive in &worker.received {
                let same = match directive.directive.clone().unwrap() {
                    Directive::Rendezvous(r) => Directive::Rendezvous(v1::Rendezvous { rank: 0, peers: vec![], ..r }),
                    Directive::Train(t) => Directive::Train(v1::Train { share_begin: 0, share_end: 0, ..t }),
                    Directive::Evaluate(e) => Directive::Evaluate(v1::Evaluate { ranges: vec![], ..e }),
                    // Also for those who are not in the generation, as everybody goes home.
                    Directive::Finish(_) | Directive::Leave(_) => continue,
                    other => other,
                };
                mine.entry(directive.generation).or_default().push(same);
            }
            mine.into_iter().for_each(|(generation, mine)| of.entry(generation).or_default().push(mine));
        }
        for told in of.values() {
            let longest = told.iter().max_by_key(|mine| mine.len()).unwrap();
            assert!(told.iter().all(|mine| longest.starts_with(mine)), "{told:?}");
        }
    }
}

/// The state that is scored: all captions must be of it, and of every image one.
fn scored_state(items: &[Item]) -> Place {
    let images: Vec<Option<u64>> = items.iter().map(|item| item.image_id).collect();
    assert_eq!(images, (0..IMAGES).map(Some).collect::<Vec<_>>(), "every image is captioned once");
    assert!(items.iter().all(|item| item.caption == items[0].caption), "captions are of one state");
    let numbers = items[0].caption.trim_matches(['(', ')']).split_once(", ").unwrap();
    Place { stage: numbers.0.parse().unwrap(), step: numbers.1.parse().unwrap() }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Join,
    Resume,
    Work(usize),
    Deliver(usize),
    Score,
    Die(usize),
    Reconnect(usize),
    Fail(usize),
    Leave(usize),
    Full(bool),
    Damage(usize),
    Lazy(bool),
    Silence,
    Flow,
    Restart(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => Just(Op::Join),
        1 => Just(Op::Resume),
        30 => any::<usize>().prop_map(Op::Work),
        30 => any::<usize>().prop_map(Op::Deliver),
        3 => Just(Op::Score),
        2 => any::<usize>().prop_map(Op::Die),
        1 => any::<usize>().prop_map(Op::Reconnect),
        1 => any::<usize>().prop_map(Op::Fail),
        1 => any::<usize>().prop_map(Op::Leave),
        1 => any::<bool>().prop_map(Op::Full),
        1 => any::<usize>().prop_map(Op::Damage),
        1 => any::<bool>().prop_map(Op::Lazy),
        1 => Just(Op::Silence),
        3 => Just(Op::Flow),
        2 => any::<bool>().prop_map(Op::Restart),
    ]
}

fn apply(world: &mut World, op: Op) {
    let sessions = world.sessions();
    let pick = |index: usize| sessions.get(index % sessions.len().max(1)).copied();
    match op {
        Op::Join => world.join(None),
        Op::Resume => world.resume(),
        Op::Work(index) => _ = pick(index).map(|session| world.work(session)),
        Op::Deliver(index) => _ = pick(index).map(|session| world.deliver(session)),
        Op::Score => _ = world.score(),
        Op::Die(index) => _ = pick(index).map(|session| world.die(session)),
        Op::Reconnect(index) => {
            if let Some(session) = pick(index) {
                let worker = world.die(session);
                world.join(worker.position.map(|position| (position, worker.history)));
            }
        }
        Op::Leave(index) => _ = pick(index).map(|session| world.leave(session)),
        Op::Full(full) => world.full = full,
        Op::Lazy(lazy) => world.lazy = lazy,
        Op::Damage(index) => {
            let names: Vec<_> = world.checkpoints.keys().cloned().collect();
            world.damaged.extend(names.get(index % names.len().max(1)).cloned());
            world.ever_damaged |= !names.is_empty();
        }
        Op::Fail(index) => _ = pick(index).map(|session| world.fail(session)),
        Op::Silence => {
            world.now += Time::from_secs(11);
            world.event(Event::Tick);
        }
        Op::Flow => {
            for _ in 0..20 {
                for session in world.sessions() {
                    world.work(session);
                    world.deliver(session);
                }
            }
        }
        Op::Restart(come_back) => {
            let held = world.restart_coordinator();
            held.into_iter().filter(|_| come_back).for_each(|state| world.join(Some(state)));
        }
    }
}

/// Does all that is said, and then lets healthy workers go on to the end, which they must always reach. None where
/// generations kept failing without any progress in between.
fn run_to_the_end(world: &mut World, ops: Vec<Op>) -> Option<()> {
    for op in ops {
        if world.outcome.is_some() {
            break;
        }
        apply(world, op);
        world.check_directives();
    }
    world.full = false;
    for _ in 0..100 {
        if world.outcome.is_some() {
            break;
        }
        world.join(None);
        world.run_dry();
        world.check_directives();
        if world.paused {
            world.resume();
        }
        world.now += Time::from_secs(6);
        world.event(Event::Tick);
    }
    match world.outcome.clone() {
        Some(Outcome::Failed(reason)) => {
            assert!(reason.contains("without progress"), "{reason}");
            None
        }
        outcome => {
            assert_eq!(outcome, Some(Outcome::Finished), "{:?}", world.run.status(world.now));
            assert!(!world.finals.is_empty());
            let all = world.way_to(world.end());
            assert!(world.finals.iter().all(|history| *history == all), "{:?} is not {all:?}", world.finals);
            world.check_checkpoints();
            Some(())
        }
    }
}

/// What a stage says of metric, patience, first evaluation and guard.
fn oversight() -> impl Strategy<Value = (Option<String>, Option<u32>, bool, Vec<Rule>)> {
    let action = prop_oneof![Just(GuardAction::Warn), Just(GuardAction::Pause), Just(GuardAction::Rollback)];
    let rule = (prop_oneof![Just("cider"), Just("kl")], 2..7_u32, any::<bool>(), 1..5_u32, action);
    let rule = rule.prop_map(|(metric, bound, is_above, for_, action)| {
        let bound = Some(f64::from(bound) - 0.5);
        let (above, below) = if is_above { (bound, None) } else { (None, bound.map(|bound| 6.0 - bound)) };
        Rule { metric: metric.into(), above, below, for_, action }
    });
    let metric = prop::option::weighted(0.7, Just("cider".to_owned()));
    (metric, prop::option::of(1..3_u32), any::<bool>(), prop::collection::vec(rule, 0..3)).prop_map(
        |(metric, patience, first, rules)| {
            let patience = patience.filter(|_| metric.is_some());
            (metric, patience, first, rules)
        },
    )
}

/// Where a stage with a metric and without a guard ends.
fn best_end(stage: &Stage, number: u32, salt: u64) -> u64 {
    let every = stage.evaluate_every.unwrap_or(stage.steps);
    let evaluated = |step: &u64| match step {
        0 => stage.evaluate_first,
        step => step.is_multiple_of(every) || *step == stage.steps,
    };
    let (mut best, mut worse) = (None, 0);
    for step in (0..=stage.steps).filter(evaluated) {
        let score = score(salt, Place { stage: number, step });
        match best {
            Some((highest, _)) if score <= highest => worse += 1,
            _ => (best, worse) = (Some((score, step)), 0),
        }
        if stage.patience.is_some_and(|patience| worse >= patience) {
            break;
        }
    }
    best.map_or(stage.steps, |(_, step)| step)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_dies_when_every_step_is_trained_once(
        ops in prop::collection::vec(op(), 0..250), min in 1..3_u32, window in 1..6_u32, keep in 1..3_u32,
    ) {
        let mut file = testing::run_file(vec![
            testing::stage("a", 11, 8, Some(4), Some(5)),
            testing::stage("b", 7, 5, None, None),
        ]);
        file.workers.min = min;
        file.control.window = window;
        file.checkpoints.keep = keep;
        let mut world = World::new(file);
        run_to_the_end(&mut world, ops);
        prop_assert!(world.ends.is_empty());
    }

    #[test]
    fn whatever_dies_when_every_stage_ends_where_it_should(
        ops in prop::collection::vec(op(), 0..250), window in 1..6_u32, keep in 1..3_u32, salt in 0..1_000_u64,
        settings in prop::collection::vec(oversight(), 2),
    ) {
        let stages = [testing::stage("a", 14, 8, Some(4), Some(3)), testing::stage("b", 7, 5, None, Some(2))];
        let with = |(stage, (metric, patience, evaluate_first, guard)): (Stage, _)| {
            Stage { metric, patience, evaluate_first, guard, ..stage }
        };
        let mut file = testing::run_file(stages.into_iter().zip(settings).map(with).collect());
        file.control.window = window;
        file.checkpoints.keep = keep;
        let mut world = World::new(file.clone());
        world.salt = salt;
        if run_to_the_end(&mut world, ops).is_none() {
            return Ok(());
        }
        for (number, stage) in (0..).zip(&file.stages) {
            let end = world.ends.get(&number).copied();
            let rollback = stage.guard.iter().any(|rule| rule.action == GuardAction::Rollback);
            if stage.metric.is_none() && !rollback {
                prop_assert_eq!(end, None);
            }
            // A state that cannot be read is not the best one any more.
            if !world.ever_damaged && stage.metric.is_some() && stage.guard.iter().all(|rule| rule.metric == "kl" && !rollback) {
                prop_assert_eq!(end.unwrap_or(stage.steps), best_end(stage, number, salt));
            }
        }
    }
}

#[test]
fn a_quiet_run_goes_straight_to_its_end() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    let count = |what: fn(&Record) -> bool| world.records.iter().filter(|record| what(record)).count();
    assert_eq!(count(|record| matches!(record, Record::Step(_))), 20);
    assert_eq!(count(|record| matches!(record, Record::Formed { .. })), 1);
    assert_eq!(count(|record| matches!(record, Record::Evaluated { .. })), 1);
    assert_eq!(count(|record| matches!(record, Record::Saved(_))), 2);
}

#[test]
fn when_all_state_dies_the_last_checkpoint_is_taken() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
    world.join(None);
    let session = world.sessions()[0];
    while world.run.committed.step < 13 {
        world.work(session);
        world.deliver(session);
    }
    world.die(session);
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    let formed = |record: &Record| match record {
        Record::Formed { start, source, .. } => Some((start.step, source.clone())),
        _ => None,
    };
    let sources: Vec<_> = world.records.iter().filter_map(formed).collect();
    assert_eq!(sources[0], (0, Source::Seed));
    assert!(matches!(&sources[1], (10, Source::Checkpoint(path)) if path == "0-a-00000010"));
}

#[test]
fn a_newcomer_is_taken_in_after_the_step_in_flight() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    world.join(None);
    let first = world.sessions()[0];
    world.work(first);
    world.deliver(first);
    assert_eq!(world.run.generation.as_ref().unwrap().granted.step, 8);
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    let second = world.records.iter().find_map(|record| match record {
        Record::Formed { generation: 2, start, source, members, .. } => {
            Some((start.step, source.clone(), members.len()))
        }
        _ => None,
    });
    assert_eq!(second, Some((2, Source::Member(0), 2)));
}

#[test]
fn asked_to_stop_it_saves_first() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    world.join(None);
    let session = world.sessions()[0];
    world.work(session);
    world.deliver(session);
    world.event(Event::Shutdown);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Stopped));
    assert_eq!(world.checkpoints["0-a-00000008"].len(), 8);
}

#[test]
fn asked_to_stop_while_a_worker_leaves_it_saves_first() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    world.join(None);
    let session = world.sessions()[0];
    world.work(session);
    world.deliver(session);
    world.work(session);
    world.deliver(session);
    // Both are asked to end, as when a whole job is.
    world.leave(session);
    world.deliver(session);
    world.event(Event::Shutdown);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Stopped));
    assert_eq!(world.run.committed, Place { stage: 0, step: 2 });
    assert_eq!(world.checkpoints["0-a-00000002"].len(), 2);
}

#[test]
fn parameters_that_differ_fail_the_run() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 2, 8, None, None)]));
    world.file.workers.min = 2;
    world.run = Run::new(world.file.clone(), Restored::default());
    world.join(None);
    world.join(None);
    let spoilt = world.sessions()[1];
    let spoil = |message: &mut Message| {
        if let Message::CheckpointDone(done) = message {
            done.parameters_sha256 = "other".into();
        }
    };
    for _ in 0..50 {
        for session in world.sessions() {
            world.work(session);
            if session == spoilt
                && let Some(worker) = world.workers.get_mut(&session)
            {
                worker.outbox.iter_mut().for_each(spoil);
            }
            world.deliver(session);
        }
    }
    let Some(Outcome::Failed(reason)) = world.outcome else { panic!("{:?}", world.outcome) };
    assert!(reason.contains("differ") && reason.contains("rank 1 other"), "{reason}");
}

#[test]
fn the_same_fatal_failure_again_and_again_fails_the_run() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 2, 8, None, None)]));
    for generation in 1..=3 {
        assert_eq!(world.outcome, None);
        world.join(None);
        let session = world.sessions()[0];
        let failed = v1::Failed { generation, reason: "no memory\nleft".into(), fatal: true, ..Default::default() };
        world.event(Event::Message { session, message: Message::Failed(failed) });
        world.workers.remove(&session);
    }
    let Some(Outcome::Failed(reason)) = world.outcome else { panic!("{:?}", world.outcome) };
    assert!(reason.contains("no memory left"), "{reason}");
}

#[test]
fn who_is_not_heard_is_lost_and_who_brings_other_data_is_sent_away() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.workers.min = 2;
    let mut run = Run::new(file, Restored::default());
    let enter = |run: &mut Run, session: u64, fingerprint: &str, now| {
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let session_token =
            admitted(&run.on_event(now, Event::Join { request: RequestId(0), token: "token".into(), join }));
        let data_set = Some(v1::DataSet { fingerprint: fingerprint.into(), ..Default::default() });
        let store_address = "host:1".into();
        let attach = v1::Attach { session_token, store_address, data_set, ..Default::default() };
        run.on_event(now, Event::Attach { session: SessionId(session), attach })
    };
    enter(&mut run, 1, "these", Time::ZERO);
    let actions = enter(&mut run, 2, "those", Time::ZERO);
    let Action::Send { session: SessionId(2), directive } = &actions[0] else { panic!("{actions:?}") };
    let Some(Directive::Leave(leave)) = &directive.directive else { panic!("{directive:?}") };
    assert!(["these", "those", "rank 0", "rank 1"].iter().all(|part| leave.reason.contains(part)), "{}", leave.reason);
    assert_eq!(run.members.len(), 1);

    let heard = Time::from_secs(6);
    enter(&mut run, 3, "these", heard);
    assert_eq!(run.status(heard).state, "forming");
    let actions = run.on_event(Time::from_secs(10), Event::Tick);
    assert!(actions.contains(&Action::Close { session: SessionId(1), refusal: None }), "{actions:?}");
    let abandon = |action: &Action| match action {
        Action::Send { session: SessionId(3), directive } => matches!(directive.directive, Some(Directive::Abandon(_))),
        _ => false,
    };
    assert!(actions.iter().any(abandon), "{actions:?}");
}

/// The token of a join that was granted.
fn admitted(actions: &[Action]) -> String {
    let token = |action: &Action| match action {
        Action::Admit { response, .. } => Some(response.session_token.clone()),
        _ => None,
    };
    actions.iter().find_map(token).unwrap_or_default()
}

/// Any message with any numbers in it.
fn nonsense() -> impl Strategy<Value = Message> {
    let number = || prop_oneof![4 => 0..4_u64, 1 => Just(u64::MAX)];
    let position = (0..3_u32, number(), number());
    (0..11, number(), number(), position, any::<u32>(), any::<f64>(), any::<bool>()).prop_map(
        |(kind, generation, id, (stage, step, of), samples, value, flag)| {
            let position = flag.then_some(v1::Position { stage, step, generation: of });
            let text = format!("{value}\n");
            match kind {
                0 => Message::Attach(v1::Attach::default()),
                1 => Message::Heartbeat(v1::Heartbeat { phase: samples.cast_signed(), position }),
                2 => Message::Ready(v1::Ready { generation, position }),
                3 => {
                    let (loss_sum, loss_weight, seconds) = (value, value, value);
                    let report =
                        v1::StepDone { position, samples, loss_sum, loss_weight, seconds, ..Default::default() };
                    Message::StepDone(report)
                }
                4 => {
                    let scores = [("pac_s".to_owned(), value)].into();
                    let items = vec![v1::EvaluationItem { image: text, scores, ..Default::default() }];
                    let range = flag.then_some(v1::ImageRange { begin: step, end: of });
                    Message::EvaluationItems(v1::EvaluationItems { generation, evaluation: id, range, items })
                }
                5 => {
                    // What an evaluation of 70 images may really be asked for.
                    let range = if flag { (0, 50) } else { (50, 70) };
                    let range = Some(v1::ImageRange { begin: range.0, end: range.1 });
                    Message::EvaluationItems(v1::EvaluationItems { generation, evaluation: id, range, items: vec![] })
                }
                6 => Message::CheckpointDone(v1::CheckpointDone {
                    generation,
                    checkpoint: id,
                    parameters_sha256: text.clone(),
                }),
                7 => Message::Advanced(v1::Advanced { generation, stage }),
                8 => Message::Idle(v1::Idle { generation, position, saving: None }),
                9 => Message::Failed(v1::Failed { generation, reason: text, fatal: flag, ..Default::default() }),
                _ => Message::Finished(v1::Finished {}),
            }
        },
    )
}

proptest! {
    #[test]
    fn nothing_that_a_peer_says_brings_the_coordinator_down(
        said in prop::collection::vec((0..4_u64, nonsense(), any::<bool>()), 0..150),
    ) {
        let stages = vec![testing::stage("a", 2, 8, Some(1), Some(1)), testing::stage("b", 1, 8, None, None)];
        let mut run = Run::new(testing::run_file(stages), Restored::default());
        let (mut sessions, mut next) = (vec![SessionId(0); 4], 0);
        for (peer, message, honest) in said {
            let session = &mut sessions[peer as usize];
            if run.members.rank_of(*session).is_none() {
                next += 1;
                *session = SessionId(next);
                let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
                let event = Event::Join { request: RequestId(next), token: next.to_string(), join };
                let session_token = admitted(&run.on_event(Time::ZERO, event));
                let store_address = "host:1".into();
                let data_set = Some(v1::DataSet { validation_images: 70, ..Default::default() });
                let attach = v1::Attach { session_token, store_address, data_set, ..Default::default() };
                run.on_event(Time::ZERO, Event::Attach { session: *session, attach });
            }
            // Now and then the truth, so that nonsense is heard in every phase of a generation.
            let generation = run.generation.as_ref().filter(|_| honest);
            let message = generation.map_or(message, |generation| {
                let (number, start) = (generation.number, generation.start);
                match run.phase {
                    super::Phase::Waiting => Message::Idle(v1::Idle { generation: number, position: None, saving: None }),
                    _ => Message::Ready(v1::Ready { generation: number, position: Some(start.in_generation(number)) }),
                }
            });
            let actions = run.on_event(Time::ZERO, Event::Message { session: *session, message });
            for action in actions {
                if let Action::Score { evaluation, items, .. } = action {
                    run.on_event(Time::ZERO, Event::Scored { evaluation, metrics: BTreeMap::new(), items });
                }
            }
            assert!(!run.status(Time::ZERO).state.is_empty());
            assert!(run.samples_committed() <= 2 * 8 + 8);
        }
    }
}
