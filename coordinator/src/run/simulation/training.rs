//! The training thread of a simulated worker: executes directives in order and reports the results.
//!
//! It can be interrupted while it waits for others, between two ranges of captions, and before an
//! update is applied; not during a computation. A save only copies the state here.

use std::hash::{DefaultHasher, Hash, Hasher};

use proto::{v1, v1::directive::Directive, v1::worker_message::Message};
use rand::Rng;
use statistics::Summary;

use super::{
    Step, WorkerId,
    network::Direction,
    score,
    worker::{Activity, Wake},
    world::SimWorld,
};
use crate::run::{Time, plan::Place};

/// How long the members of a generation wait for each other in a rendezvous.
const MEETING_PATIENCE: Time = Time::from_secs(60);
/// The time that it takes to find a peer unreachable.
const ANSWER: Time = Time::from_secs(2);

/// A hash of a state's history, from which parameters and captions are derived.
pub fn digest(history: &[Step]) -> String {
    let mut hasher = DefaultHasher::new();
    history.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl SimWorld {
    /// Queues a directive for the training thread.
    pub fn order(&mut self, id: WorkerId, directive: v1::Directive) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.orders.push_back(directive);
        self.go_on(id);
    }

    /// Abandons a generation: ends a wait in its collective at once.
    pub fn abandon(&mut self, id: WorkerId, generation: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.abandoned = worker.abandoned.max(generation);
        if matches!(&worker.doing, Activity::Meeting(_) | Activity::Adopting(_) | Activity::Reducing(_)) {
            self.wake(id, Time::ZERO, Wake::Broken);
        }
    }

    /// Executes the next directives, while the thread is idle.
    pub fn go_on(&mut self, id: WorkerId) {
        while let Some(worker) = self.workers.get_mut(&id) {
            if worker.frozen || worker.stuck || !matches!(worker.doing, Activity::Nothing) {
                return;
            }
            let Some(v1::Directive { generation, directive: Some(directive) }) = worker.orders.pop_front() else {
                return;
            };
            if generation <= worker.let_go && !matches!(directive, Directive::Abandon(_)) {
                continue;
            }
            self.execute(id, generation, directive);
        }
    }

    fn execute(&mut self, id: WorkerId, generation: u64, directive: Directive) {
        self.check_begun(id, generation, &directive);
        let has_saved = self.has_saved(id);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match directive {
            Directive::Rendezvous(rendezvous) => {
                let earlier = worker.generation.replace(generation);
                (worker.rank_within, worker.rounds) = (rendezvous.rank, 0);
                let takes = if self.unreachable(id, &rendezvous.peers).is_empty() { self.latency() } else { ANSWER };
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.doing = Activity::Reaching(rendezvous);
                }
                if let Some(earlier) = earlier {
                    self.let_go(id, earlier, false);
                }
                self.wake(id, takes, Wake::Done);
            }
            Directive::Train(train) => self.compute(id, train),
            Directive::Evaluate(evaluate) => self.caption(id, generation, evaluate),
            Directive::Checkpoint(checkpoint) => {
                worker.doing = Activity::Copying(checkpoint);
                let takes = self.rng.random_range(5..20);
                self.wake(id, Time::from_millis(takes), Wake::Done);
            }
            Directive::Advance(v1::Advance { stage }) => {
                worker.position = Some(v1::Position { stage, step: 0, generation });
                self.report(id, Message::Advanced(v1::Advanced { generation, stage }));
            }
            Directive::Abandon(_) => {
                self.leave_generation(id, generation);
                self.report_idle(id, generation);
            }
            Directive::Finish(_) if has_saved => self.report(id, Message::Finished(v1::Finished {})),
            Directive::Finish(_) => worker.doing = Activity::Finishing,
            // The connection handles these.
            Directive::Leave(_) | Directive::Halt(_) => {}
        }
    }

    /// The peers that are unreachable.
    fn unreachable(&self, id: WorkerId, peers: &[v1::Peer]) -> Vec<u32> {
        let cut = |id: WorkerId| self.network.is_cut(id, Direction::Peers);
        let other = |peer: &v1::Peer| peer.store_address.split_once(':')?.1.parse().ok().map(WorkerId);
        let there = |other: WorkerId| !cut(id) && !cut(other) && self.workers.contains_key(&other);
        let out_of_reach = |peer: &&v1::Peer| !other(peer).is_some_and(there);
        peers.iter().filter(out_of_reach).map(|peer| peer.rank).collect()
    }

    /// Enters the rendezvous, if all peers are reachable.
    fn go_to_meeting(&mut self, id: WorkerId, generation: u64, rendezvous: v1::Rendezvous) {
        let (unreachable, world) = (self.unreachable(id, &rendezvous.peers), rendezvous.world_size);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if unreachable.is_empty() {
            worker.doing = Activity::Meeting(rendezvous);
            let patience = if worker.abandoned >= generation { Time::ZERO } else { MEETING_PATIENCE };
            self.wake(id, patience, Wake::Broken);
            self.meet(id, generation, world);
        } else {
            // The others have not met this worker yet.
            (worker.generation, worker.let_go) = (None, worker.let_go.max(generation));
            let reason = "cannot reach others".to_owned();
            self.fail(id, v1::Failed { generation, reason, unreachable, ..Default::default() });
        }
    }

    fn compute(&mut self, id: WorkerId, train: v1::Train) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let at = worker.position.as_ref().map(Place::from).unwrap_or_default();
        let granted = train.first_step..train.first_step + u64::from(train.steps);
        assert!(at.stage == train.stage && granted.contains(&at.step), "told {train:?} at {at}");
        worker.share = (train.share_begin, train.share_end);
        let samples = f64::from(train.share_end - train.share_begin);
        worker.doing = Activity::Computing(train);
        // In proportion to the share of one of two workers.
        worker.computed = worker.pace.mul_f64(self.rng.random_range(0.5..1.5) * samples / 4.0);
        let takes = worker.computed;
        self.wake(id, takes, Wake::Done);
    }

    /// Handles a wake-up of the training thread.
    pub fn work(&mut self, id: WorkerId, task: u64, wake: Wake) {
        let has_saved = self.has_saved(id);
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.task == task) else { return };
        let generation = worker.generation.unwrap_or_default();
        let abandoned = worker.abandoned >= generation;
        let doing = std::mem::take(&mut worker.doing);
        match doing {
            Activity::Nothing => {}
            Activity::Reaching(rendezvous) => self.go_to_meeting(id, generation, rendezvous),
            Activity::Adopting(rendezvous) if wake == Wake::Broken => {
                // The source's state may have arrived in part.
                if rendezvous.source_rank != Some(rendezvous.rank) && self.rng.random() {
                    worker.position = None;
                }
                self.break_off(id, abandoned);
            }
            _ if wake == Wake::Broken => self.break_off(id, abandoned),
            Activity::Computing(_) if abandoned => self.break_off(id, true),
            Activity::Computing(train) => {
                worker.doing = Activity::Reducing(train);
                worker.rounds += 1;
                let round = worker.rounds;
                self.arrive(id, generation, round);
            }
            Activity::Adopting(rendezvous) => self.adopt(id, generation, &rendezvous),
            Activity::Applying(train) => self.apply(id, generation, train),
            Activity::Captioning(evaluate) => self.report_captions(id, generation, evaluate),
            Activity::Copying(checkpoint) => self.hand_over(id, generation, checkpoint),
            Activity::HandingOver => {}
            Activity::Finishing if has_saved => self.report(id, Message::Finished(v1::Finished {})),
            Activity::Finishing => worker.doing = Activity::Finishing,
            Activity::Meeting(_) | Activity::Reducing(_) => unreachable!("waits for others"),
        }
        self.go_on(id);
    }

    fn adopt(&mut self, id: WorkerId, generation: u64, rendezvous: &v1::Rendezvous) {
        let Some(state) = self.collectives[&generation].state.clone() else {
            if rendezvous.rank == 0 {
                self.leave_generation(id, generation);
                let (reason, damaged_checkpoint) = ("it is damaged".to_owned(), rendezvous.checkpoint.clone());
                self.fail(id, v1::Failed { generation, reason, damaged_checkpoint, ..Default::default() });
            } else if let Some(worker) = self.workers.get_mut(&id) {
                // Waits for the state.
                worker.doing = Activity::Adopting(rendezvous.clone());
            }
            return;
        };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.history, worker.position) = (state, rendezvous.position);
        self.check_adopted(id, generation);
        let position = rendezvous.position;
        self.report(id, Message::Ready(v1::Ready { generation, position }));
    }

    fn apply(&mut self, id: WorkerId, generation: u64, train: v1::Train) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let reached = Place::from(&worker.position.unwrap_or_default()).after(1);
        let position = reached.in_generation(generation);
        let (round, seconds) = (worker.rounds, worker.computed.as_secs_f64());
        worker.history.push(Step { place: reached, generation });
        worker.position = Some(position);
        self.check_applied(id, generation);
        let kl = (&Summary::of([score(self.scenario.salt + 1, reached)])).into();
        let done = v1::StepDone {
            position: Some(position),
            loss_weight: 1.0,
            seconds,
            samples: train.share_end - train.share_begin,
            summaries: [("kl".to_owned(), kl)].into(),
            ..Default::default()
        };
        self.report(id, Message::StepDone(done));
        if self.collectives[&generation].halting.contains(&round) {
            self.halt(id, generation);
        } else if reached.step < train.first_step + u64::from(train.steps) {
            self.compute(id, train);
        }
    }

    /// Captions the next range, if there is one.
    fn caption(&mut self, id: WorkerId, generation: u64, evaluate: v1::Evaluate) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if evaluate.ranges.is_empty() {
            return;
        }
        if worker.abandoned >= generation {
            self.break_off(id, true);
            return;
        }
        worker.doing = Activity::Captioning(evaluate);
        let pace = worker.pace;
        let takes = pace.mul_f64(self.rng.random_range(1.0..1.5));
        self.wake(id, takes, Wake::Done);
    }

    fn report_captions(&mut self, id: WorkerId, generation: u64, mut evaluate: v1::Evaluate) {
        let worker = &self.workers[&id];
        let range = evaluate.ranges.remove(0);
        let at = worker.position.unwrap_or_default();
        let caption = format!("{} {} {}", at.stage, at.step, digest(&worker.history));
        let item = |image| v1::EvaluationItem {
            image: format!("image {image:03}"),
            caption: caption.clone(),
            image_id: Some(image),
            ..Default::default()
        };
        let items: Vec<_> = (range.begin..range.end).step_by(self.scenario.stride).map(item).collect();
        let evaluation = evaluate.evaluation;
        self.captioned.push((id, range.into()));
        // Some ranges are sent in two parts.
        let (first, second) = items.split_at(if range.begin.is_multiple_of(100) { 0 } else { items.len() / 2 });
        for (items, more) in
            [(first, true), (second, false)].into_iter().filter(|(items, more)| !more || !items.is_empty())
        {
            let items = v1::EvaluationItems { generation, evaluation, range: Some(range), items: items.to_vec(), more };
            self.report(id, Message::EvaluationItems(items));
        }
        let halts = self.workers.get(&id).is_some_and(|worker| worker.halted == generation);
        if halts && !evaluate.ranges.is_empty() {
            self.halt(id, generation);
        } else {
            self.caption(id, generation, evaluate);
        }
    }

    /// Ends a halted generation after what was in flight.
    fn halt(&mut self, id: WorkerId, generation: u64) {
        self.leave_generation(id, generation);
        self.report_idle(id, generation);
    }

    /// Ends a generation for this worker: it was abandoned, or the others have failed.
    fn break_off(&mut self, id: WorkerId, abandoned: bool) {
        let Some(generation) = self.workers.get(&id).and_then(|worker| worker.generation) else { return };
        self.leave_generation(id, generation);
        if !abandoned {
            self.fail(id, v1::Failed { generation, reason: "collective failed".to_owned(), ..Default::default() });
        }
    }

    pub fn leave_generation(&mut self, id: WorkerId, generation: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.let_go = worker.let_go.max(generation);
        if let Some(own) = worker.generation.take() {
            self.let_go(id, own, false);
        }
    }

    pub fn fail(&mut self, id: WorkerId, failed: v1::Failed) {
        let (generation, fatal) = (failed.generation, failed.fatal);
        self.report(id, Message::Failed(failed));
        if !fatal {
            self.report_idle(id, generation);
        }
    }

    fn report_idle(&mut self, id: WorkerId, generation: u64) {
        let Some(position) = self.workers.get(&id).map(|worker| worker.position) else { return };
        let saving = self.saving(id);
        self.report(id, Message::Idle(v1::Idle { generation, position, saving }));
    }
}
