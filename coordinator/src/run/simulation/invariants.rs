//! The invariants of a run, checked at every step.
//!
//! A state is the list of all updates that led to it, each with the generation that applied it. Two
//! states are therefore equal only if their parameters would be bitwise equal. The committed
//! history is such a list, too.

use std::collections::{BTreeMap, BTreeSet};

use proto::{v1, v1::directive::Directive};

use super::{
    History, Step, WorkerId,
    coordinator::Captioned,
    disk::Disk,
    network::Direction,
    score,
    training::digest,
    worker::{Activity, Worker},
    world::{SimWorld, Trace},
};
use config::GuardAction;

use crate::run::{
    Phase, SessionId, Time,
    model_selection::EndCause,
    plan::{Place, StageEnds},
    record::{Checkpoint, EventKind, Record, Source},
};

/// Without faults there has to be progress within this time: more than a worker may take to release
/// a generation, or to enter a rendezvous.
const PROGRESS_WITHIN: Time = Time::from_secs(300);

/// A worker may be evicted for a fault for at most this long after its repair.
const UNWELL_FOR: Time = Time::from_secs(5);

#[derive(Clone, Debug, Default)]
pub struct Invariants {
    /// The generation that forms or runs.
    pub live: Option<u64>,
    last_generation: u64,
    /// The term of the last generation.
    last_term: u64,
    /// The starts of generations.
    starts: BTreeMap<u64, Place>,
    /// The committed history.
    pub committed: History,
    /// The committed point.
    at: Place,
    /// For each generation, the state of the member that trained furthest.
    states: BTreeMap<u64, History>,
    /// The directives that the members of each generation have begun, in order, without shares.
    begun: BTreeMap<u64, Vec<Directive>>,
    /// The state that the worker of each session last reported.
    pub held: BTreeMap<SessionId, Option<History>>,
    /// Evaluated states of the present history: the number of their updates, and whether they may
    /// be evaluated again.
    pub evaluated: BTreeMap<Place, (usize, bool)>,
    /// The ends of stages.
    pub ends: StageEnds,
    pub paused: bool,
    /// States whose evaluation an operator requested.
    pub asked: BTreeSet<Place>,
    /// The run is finished, or has failed.
    pub over: bool,
    /// Set when a stage ends with an earlier state: states beyond it are given up.
    given_up: Option<Place>,
    /// Whether a rollback of committed steps is recorded.
    rolled_back: bool,
    progress: (u64, u64, Time),
    /// Since when no fault was injected or repaired.
    pub calm_since: Time,
    pub formed: u64,
    pub trained: u64,
    pub repeated: u64,
    /// Recorded checkpoints that are neither deleted nor damaged.
    saved: BTreeMap<Place, String>,
    /// Whether a checkpoint could not be used: then a stage cannot select from all saved states.
    pub damaged: bool,
}

fn places(history: &[Step]) -> Vec<Place> {
    history.iter().map(|step| step.place).collect()
}

/// The length of the common prefix of two histories.
fn common(one: &[Step], other: &[Step]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// The prefix of a history that leads to a point of the run.
fn up_to(history: &[Step], at: Place) -> &[Step] {
    &history[..history.partition_point(|step| step.place <= at)]
}

impl Invariants {
    /// The invariants for a coordinator that resumes from this backup; only checkpoints on `disk`
    /// remain.
    fn of_backup(self, disk: &Disk) -> Self {
        let (progress, calm_since, live, held) = Default::default();
        let mut own = Self { progress, calm_since, live, held, ..self };
        let saved = own.saved.len();
        own.saved.retain(|_, name| disk.checkpoints.contains_key(name));
        own.damaged |= own.saved.len() < saved;
        own
    }
}

/// An older copy of the journal, with the invariants of that time.
pub struct Backup {
    records: Vec<Record>,
    invariants: Invariants,
    checkpoints: BTreeMap<String, History>,
}

impl Backup {
    /// Whether the copy knows all checkpoints on disk: otherwise a coordinator refuses the copy.
    pub fn agrees(&self, world: &SimWorld) -> bool {
        let saved = |name: &String| self.invariants.saved.values().any(|saved| saved == name);
        let mut on_disk = world.disk.checkpoints.iter();
        on_disk.all(|(name, state)| saved(name) && self.checkpoints.get(name) == Some(state))
    }
}

impl SimWorld {
    /// A copy of the present journal.
    pub fn back_up(&self) -> Backup {
        let (records, checkpoints) = (self.coordinator.records.clone(), self.disk.checkpoints.clone());
        Backup { records, invariants: self.invariants.clone(), checkpoints }
    }

    /// A world whose coordinator starts with an older copy of this one's journal. All workers have
    /// lost their sessions, and join it.
    pub fn restore_backup(self, backup: Backup, seed: u64, trace: Trace) -> Self {
        let Self { scenario, disk, workers, run_id, .. } = self;
        let mut world = Self::without_coordinator(seed, trace, |_| scenario);
        world.coordinator.records = backup.records;
        world.disk = disk;
        world.disk.full = false;
        world.invariants = backup.invariants.of_backup(&world.disk);
        let machines = world.scenario.machines.len();
        (world.run_id, world.restored_backup) = (run_id, true);
        world.left_over = workers.into_values().take(machines).collect();
        world.start_coordinator();
        world
    }

    /// The steps that lead to a point of the run.
    pub fn way_to(&self, at: Place) -> Vec<Place> {
        let steps = |stage: u32, end: u64| (1..=end).map(move |step| Place { stage, step });
        (0..at.stage).flat_map(|stage| steps(stage, self.end_of(stage))).chain(steps(at.stage, at.step)).collect()
    }

    /// The end of the run.
    pub fn end(&self) -> Place {
        let last = self.scenario.file.stages.len() as u32 - 1;
        Place { stage: last, step: self.end_of(last) }
    }

    fn end_of(&self, stage: u32) -> u64 {
        *self.invariants.ends.get(&stage).unwrap_or(&self.scenario.file.stages[stage as usize].steps)
    }

    // ------------------------------------------------------------------------------------------------------ workers

    /// Asserts that all members of a generation execute the same directives, in the same order.
    pub fn check_begun(&mut self, id: WorkerId, generation: u64, directive: &Directive) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let same = match directive.clone() {
            Directive::Rendezvous(rendezvous) => {
                assert!(worker.generation.is_none_or(|earlier| earlier < generation), "it only goes forward");
                worker.begun = 0;
                Directive::Rendezvous(v1::Rendezvous { rank: 0, peers: vec![], ..rendezvous })
            }
            Directive::Train(train) => Directive::Train(v1::Train { share_begin: 0, share_end: 0, ..train }),
            Directive::Evaluate(evaluate) => Directive::Evaluate(v1::Evaluate { ranges: vec![], ..evaluate }),
            other @ (Directive::Checkpoint(_) | Directive::Advance(_)) => other,
            Directive::Abandon(_) | Directive::Halt(_) | Directive::Finish(_) | Directive::Leave(_) => return,
        };
        if !matches!(same, Directive::Rendezvous(_)) {
            assert_eq!(worker.generation, Some(generation), "it was told {same:?} outside of its generation");
        }
        let begun = self.invariants.begun.entry(generation).or_default();
        match begun.get(worker.begun) {
            Some(first) => assert_eq!(*first, same, "told differently in generation {generation}"),
            None => begun.push(same),
        }
        worker.begun += 1;
    }

    /// Asserts that the shares of the members that are about to apply a step cover the whole batch.
    pub fn check_shares(&self, members: &[WorkerId]) {
        let reducing = |id: &WorkerId| {
            let worker = self.workers.get(id)?;
            let Activity::Reducing(train) = &worker.doing else { return None };
            Some((worker.rank_within, train.stage, train.share_begin..train.share_end))
        };
        // None: some have died since, or are in a rendezvous.
        let Some(mut shares) = members.iter().map(reducing).collect::<Option<Vec<_>>>() else { return };
        shares.sort_by_key(|(rank, ..)| *rank);
        let mut next = 0;
        for (_, _, share) in &shares {
            assert_eq!(share.start, next, "a sample is lost or trained on twice");
            assert!(share.end > share.start, "nobody is left out");
            next = share.end;
        }
        let batch = self.scenario.file.stages[shares[0].1 as usize].batch;
        assert_eq!(next, batch, "the shares are not the batch");
    }

    /// Asserts that all members of a generation begin with the same state, which is the committed
    /// one.
    pub fn check_adopted(&mut self, id: WorkerId, generation: u64) {
        let history = &self.workers[&id].history;
        let state = self.invariants.states.entry(generation).or_insert_with(|| history.clone());
        assert_eq!(state, history, "another state to begin with");
        if self.invariants.live == Some(generation) {
            assert_eq!(self.invariants.committed, *history, "a generation begins with what is committed");
        }
    }

    /// Asserts that all members of a generation train the same steps, each once and in order.
    pub fn check_applied(&mut self, id: WorkerId, generation: u64) {
        let history = &self.workers[&id].history;
        let [earlier @ .., last] = history.as_slice() else { return };
        let Place { stage, step } = last.place;
        let follows = match earlier.last() {
            Some(Step { place, .. }) if place.stage == stage => place.step + 1 == step,
            Some(Step { place, .. }) => place.stage < stage && step == 1,
            None => step == 1,
        };
        assert!(follows, "{:?} after {:?}", last, earlier.last());
        let state = self.invariants.states.entry(generation).or_default();
        if state.len() < history.len() {
            state.push(*last);
            self.invariants.trained += 1;
        }
        assert_eq!(up_to(state, last.place), history, "other steps than the others");
    }

    // -------------------------------------------------------------------------------------------------- coordinator

    /// Asserts that a paused run sends no directives to train, evaluate, advance or finish.
    pub fn check_sent(&self, directive: &v1::Directive) {
        let goes_on = matches!(
            directive.directive,
            Some(Directive::Train(_) | Directive::Evaluate(_) | Directive::Advance(_) | Directive::Finish(_))
        );
        assert!(!(self.invariants.paused && goes_on), "the run is paused: {directive:?}");
    }

    pub fn check_record(&mut self, record: &Record) {
        match record {
            Record::Formed { generation, term, start, source, .. } => {
                self.invariants.last_term = *term;
                self.check_formed(*generation, *start, source);
            }
            Record::Ended { generation, .. } => assert_eq!(self.invariants.live.take(), Some(*generation)),
            Record::Saved(saved) => {
                self.check_saved(saved);
                self.invariants.saved.insert(saved.place, saved.name.clone());
            }
            Record::Deleted(name) => self.check_deleted(name),
            Record::Damaged(name) => {
                self.invariants.saved.retain(|_, saved| saved != name);
                assert!(self.disk.damaged.contains(name), "{name} is as it was written");
                self.invariants.damaged = true;
            }
            Record::Event { what: EventKind::Lost, detail } => self.check_lost(detail),
            Record::Evaluated { place, .. } => {
                let updates = up_to(&self.invariants.committed, *place).len();
                let earlier = self.invariants.evaluated.insert(*place, (updates, false));
                assert!(earlier.is_none_or(|(_, again)| again), "{place} is evaluated twice");
            }
            Record::Event { what: EventKind::Paused, .. } => self.invariants.paused = true,
            Record::Event { what: EventKind::Resumed, .. } => self.invariants.paused = false,
            Record::Event { what: EventKind::RolledBack, .. } => self.invariants.rolled_back = true,
            Record::Event { what: EventKind::StageEnded, detail } => {
                let number = |key: &str| detail[key].as_u64().expect("a number");
                let end = Place { stage: number("stage") as u32, step: number("step") };
                let ended = self.invariants.ends.insert(end.stage, end.step);
                assert_eq!(ended, None, "a stage ends once");
                self.invariants.given_up = Some(end);
                if detail["cause"] != EndCause::Guard.name() {
                    // The run continues from here; no step is lost.
                    let committed = up_to(&self.invariants.committed, end).len();
                    self.invariants.committed.truncate(committed);
                    self.invariants.at = end.min(self.invariants.at);
                }
            }
            Record::Event { what: EventKind::Finished, .. } => {
                self.check_finished();
                self.invariants.over = true;
            }
            Record::Event { what: EventKind::Failed, .. } => self.invariants.over = true,
            _ => {}
        }
    }

    fn check_formed(&mut self, generation: u64, start: Place, source: &Source) {
        let earlier = self.invariants.live.replace(generation);
        assert_eq!(earlier, None, "one generation at a time");
        assert!(generation > self.invariants.last_generation, "generation numbers grow");
        self.invariants.last_generation = generation;
        self.invariants.formed += 1;
        let run = self.run();
        let held = |session: SessionId| self.invariants.held[&session].clone();
        let state = match source {
            Source::Member(rank) => run.members.get(*rank).and_then(|member| held(member.session)),
            Source::Checkpoint(name) => self.disk.checkpoints.get(name).cloned(),
            Source::Seed => Some(History::new()),
        };
        let state = state.unwrap_or_else(|| panic!("{source} has no state"));
        assert_eq!(places(&state), self.way_to(start), "the state of {source}");
        let committed = &self.invariants.committed;
        let (same, lost) = (common(committed, &state), committed.len() - common(committed, &state));
        let beyond = |step: &Step| {
            let later = &mut self.invariants.starts.range(step.generation + 1..);
            later.any(|(_, start)| *start < step.place)
        };
        assert!(!state.last().is_some_and(beyond), "{source} has a state that was given up: {state:?}");
        assert!(lost == 0 || same == state.len(), "{source} is of another history: {state:?}, {committed:?}");
        if lost > 0 && self.invariants.given_up.is_none() {
            assert!(self.invariants.rolled_back, "what is committed is never lost in silence");
            let is_harmless = self.scenario.is_harmless() && !self.restored_backup;
            assert!(!is_harmless, "nothing that is lost went wrong");
            for (rank, member) in run.members.iter() {
                let position = member.position.unwrap_or_default();
                let mut later = self.invariants.starts.range(position.generation + 1..);
                let gone = later.any(|(_, start)| *start < Place::from(&position));
                let better = |held: &History| !gone && common(committed, held) > same;
                assert!(!held(member.session).is_some_and(|held| better(&held)), "rank {rank} held what is given up");
            }
        }
        self.invariants.repeated += lost as u64;
        self.invariants.committed = state;
        self.invariants.at = start;
        self.invariants.starts.insert(generation, start);
        self.invariants.evaluated.retain(|place, (updates, again)| {
            // The beginning of a stage has the same state as the end of the one before.
            *again |= *place > start;
            *updates <= self.invariants.committed.len()
        });
        (self.invariants.given_up, self.invariants.rolled_back) = (None, false);
    }

    /// Asserts that a checkpoint written by a member is the one that the run saves.
    pub fn check_awaited(&self, session: Option<SessionId>, name: &str) {
        let Some(run) = self.coordinator.run.as_ref().filter(|run| !matches!(run.phase, Phase::Over { .. })) else {
            return;
        };
        let member = session.is_some_and(|session| run.members.rank_of(session).is_some());
        let awaited = run.saving.as_ref().is_some_and(|saving| saving.name == name);
        assert!(awaited || !member, "nobody waits for {name}");
    }

    fn check_saved(&self, saved: &Checkpoint) {
        let Checkpoint { place, name, parameters_sha256, .. } = saved;
        let committed = up_to(&self.invariants.committed, *place);
        assert_eq!(self.disk.checkpoints.get(name).map(Vec::as_slice), Some(committed), "checkpoint {name}");
        assert_eq!(digest(committed), *parameters_sha256);
    }

    /// Asserts that no state is deleted that the user or the run may need: the last one of a stage,
    /// the one that a stage has ended with, and the best one of a stage that no rule can
    /// disqualify.
    fn check_deleted(&mut self, name: &str) {
        let Some(place) = self.invariants.saved.iter().find(|(_, saved)| *saved == name).map(|(place, _)| *place)
        else {
            return;
        };
        let Place { stage, step } = place;
        let own = || self.invariants.saved.keys().filter(|other| other.stage == stage);
        assert_ne!(own().next_back(), Some(&place), "{name} is the last of its stage");
        assert_ne!(self.invariants.ends.get(&stage), Some(&step), "stage {stage} has ended with {name}");
        let settings = &self.scenario.file.stages[stage as usize];
        let can_roll_back = settings.guard.iter().any(|rule| rule.action == GuardAction::Rollback);
        if settings.metric.is_some() && !can_roll_back && !self.invariants.ends.contains_key(&stage) {
            let scored = own().filter(|other| self.run().scores.contains_key(other));
            let best = scored.reduce(|best, other| {
                if score(self.scenario.salt, *other) > score(self.scenario.salt, *best) { other } else { best }
            });
            assert_ne!(best, Some(&place), "{name} is the best of its stage");
        }
        self.invariants.saved.remove(&place);
    }

    /// Asserts that a scored state is committed.
    pub fn check_captions(&self, captioned: &Captioned) {
        let committed = up_to(&self.invariants.committed, captioned.place);
        assert_eq!(
            digest(committed),
            captioned.digest,
            "captions of another state than the one at {}",
            captioned.place
        );
    }

    /// After every event: asserts that committed steps were applied, and that the history only
    /// grows.
    pub fn check_committed(&mut self) {
        let Some(run) = &self.coordinator.run else { return };
        let (at, generation) = (run.committed, run.last_generation);
        // It may have died before it recorded that a generation was formed, or that a stage has
        // ended.
        let unrecorded = generation != self.invariants.last_generation
            || run.plan.has_ended(at.stage) != self.invariants.ends.contains_key(&at.stage);
        if at == self.invariants.at || unrecorded {
            return;
        }
        assert!(at > self.invariants.at, "{at} is committed, which {} was", self.invariants.at);
        let applied =
            self.invariants.states.get(&generation).map(|state| up_to(state, at).to_vec()).unwrap_or_default();
        assert!(applied.starts_with(&self.invariants.committed), "what is committed stays");
        assert_eq!(places(&applied), self.way_to(at), "every step up to what is committed is applied");
        (self.invariants.committed, self.invariants.at) = (applied, at);
    }

    /// Asserts that a coordinator that has started knows all records that had to be durable.
    pub fn check_restored(&mut self) {
        let run = self.coordinator.run.as_ref().expect("it has just started");
        assert!(run.committed <= self.invariants.at, "{} was never reached", run.committed);
        let at = run.committed;
        let Invariants { committed, evaluated, paused, given_up, .. } = &mut self.invariants;
        committed.truncate(up_to(committed, at).len());
        evaluated.retain(|place, _| given_up.is_none_or(|end| *place <= end));
        let known = |place: &Place, again: bool| again || run.scores.contains_key(place);
        assert!(evaluated.iter().all(|(place, (_, again))| known(place, *again)), "evaluations are remembered");
        assert!(run.scores.keys().all(|place| evaluated.contains_key(place)), "evaluations of another history");
        assert_eq!(run.paused.is_some(), *paused, "a pause is remembered");
        for stage in 0..self.scenario.file.stages.len() as u32 {
            assert_eq!(run.plan.steps(stage), self.end_of(stage), "the ends of stages are remembered");
        }
        (self.invariants.at, self.invariants.live, self.invariants.given_up) = (at, None, None);
        assert_eq!(places(&self.invariants.committed), self.way_to(at));
        self.check_known_checkpoints();
    }

    fn check_finished(&self) {
        assert_eq!(
            places(&self.invariants.committed),
            self.way_to(self.end()),
            "every step is trained once, up to the end"
        );
        for worker in self.workers.values() {
            // Includes workers that have failed since, without the coordinator knowing.
            let is_of_run = worker.run_id == self.run_id && !worker.lies && worker.term == self.invariants.last_term;
            let last = worker.position.filter(|position| position.generation == self.invariants.last_generation);
            if is_of_run && last.is_some() {
                assert_eq!(worker.history, self.invariants.committed, "all end with the same state");
            }
        }
    }

    /// Asserts that only faulty workers are evicted for a stall or for missing heartbeats.
    fn check_lost(&self, detail: &serde_json::Value) {
        let (rank, reason) = (detail["rank"].as_u64(), detail["reason"].as_str().expect("a reason"));
        let its = |worker: &&Worker| worker.rank.map(u64::from) == rank && detail["host"] == worker.host.as_str();
        let ends = [reason.contains("did not move"), reason.contains("was not heard")];
        // None: the worker is gone.
        let Some((id, worker)) = self.workers.iter().find(|(_, worker)| its(worker)).filter(|_| ends != [false; 2])
        else {
            return;
        };
        let Some(session) = worker.session() else { return };
        let now = self.agenda.now();
        let shortly = |since: Time| now - since < self.scenario.heartbeat_timeout() + UNWELL_FOR;
        let cut = [Direction::Up, Direction::Down, Direction::Peers].iter().any(|way| self.network.is_cut(*id, *way));
        let unwell = worker.stuck || worker.frozen || cut || shortly(worker.well_since);
        let unheard = self.network.is_reset(session) || self.network.erratic || shortly(self.network.erratic_until);
        assert!(unwell || (ends[1] && unheard), "{id:?} is well: {reason}");
    }

    /// Whether the run needs an operator who kills hanging workers: no member waits for them, or
    /// there are too few others.
    fn is_helpless(&self) -> bool {
        let stuck: BTreeSet<Option<SessionId>> =
            self.workers.values().filter(|worker| worker.stuck).map(Worker::session).collect();
        let members = &self.run().members;
        let well = members.iter().filter(|(_, member)| !stuck.contains(&Some(member.session))).count();
        !stuck.is_empty() && (well == 0 || members.len() < self.scenario.file.workers.min as usize)
    }

    /// Asserts that there is progress while there are no faults.
    pub fn check_progress(&mut self) {
        let Some(run) = &self.coordinator.run else { return };
        let (life, progress, since) = self.invariants.progress;
        let now = self.agenda.now();
        if (life, progress) != (self.coordinator.life, run.progress) {
            self.invariants.progress = (self.coordinator.life, run.progress, now);
            return;
        }
        let waits = self.faults.under_way > 0 || self.is_helpless() || self.invariants.paused || !self.scenario.goes_on;
        let since = since.max(self.invariants.calm_since);
        assert!(waits || now - since < PROGRESS_WITHIN, "no progress: {:?}", run.status(self.coordinator.clock));
    }

    /// Asserts that a run fails for repeated failures only while there are faults.
    pub fn check_failure(&self, reason: &str) {
        let trouble = self.faults.under_way > 0 || self.agenda.now() - self.invariants.calm_since < PROGRESS_WITHIN;
        let excused = !self.scenario.goes_on || (trouble && reason.contains("without progress"));
        assert!(excused, "the run failed: {reason}");
    }

    /// Asserts what a finished run leaves behind.
    pub fn check_end(&self) {
        self.check_disk();
        for (number, stage) in (0..).zip(&self.scenario.file.stages) {
            let end = self.end_of(number);
            let evaluated = |step: u64| self.invariants.evaluated.contains_key(&Place { stage: number, step });
            for step in (0..=end).filter(|step| self.scenario.is_evaluated(stage, *step)) {
                // A stage that ended early need not be evaluated at its end.
                let ended = self.invariants.ends.get(&number) == Some(&step);
                assert!(evaluated(step) || ended, "stage {number} step {step} is not evaluated");
            }
        }
        let last = |place: &&Place| {
            let asked = self.invariants.asked.contains(place);
            place.step > self.end_of(place.stage)
                || !asked && !self.scenario.is_evaluated(&self.scenario.file.stages[place.stage as usize], place.step)
        };
        assert_eq!(self.invariants.evaluated.keys().find(last), None, "evaluated unasked");
        if !self.invariants.damaged && self.invariants.asked.is_empty() {
            self.scenario.check_ends(&self.invariants.ends);
        }
    }
}
