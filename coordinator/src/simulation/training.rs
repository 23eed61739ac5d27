//! The training thread of a simulated worker: executes directives in order and reports the results.
//!
//! It can be interrupted while it waits for other members, between two ranges of captions, and
//! before it applies an update, but not during a computation. For a checkpoint it only copies the
//! state; the saver writes the copy.

use std::hash::{DefaultHasher, Hash, Hasher};

use dico_engine::{Time, plan::Position};
use proto::{v1, v1::directive::Directive, v1::worker_message::Message};
use rand::Rng;
use summary_statistics::Summary;

use super::{
    ProcessId, Update,
    cluster::Cluster,
    network::Direction,
    score,
    worker::{Activity, WakeReason},
};

/// The time for which the members of a generation wait for each other in a rendezvous.
const RENDEZVOUS_TIMEOUT: Time = Time::from_secs(60);
/// The time after which a connection attempt to an unreachable peer fails.
const PEER_CHECK_TIMEOUT: Time = Time::from_secs(2);

/// A hash of a training state. It is reported as the hash of the parameters, and is a part of
/// captions.
pub fn digest(history: &[Update]) -> String {
    let mut hasher = DefaultHasher::new();
    history.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

impl Cluster {
    /// Queues a directive for the training thread.
    pub fn enqueue_directive(&mut self, id: ProcessId, directive: v1::Directive) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.directives.push_back(directive);
        self.execute_directives(id);
    }

    /// Abandons a generation: if the training thread waits in its collective, the wait fails at
    /// once.
    pub fn abandon_generation(&mut self, id: ProcessId, generation: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.abandoned_up_to = worker.abandoned_up_to.max(generation);
        if matches!(
            &worker.activity,
            Activity::AwaitingRendezvous(_) | Activity::ReceivingState(_) | Activity::AwaitingAllReduce(_)
        ) {
            self.schedule_wake_up(id, Time::ZERO, WakeReason::CollectiveFailed);
        }
    }

    /// Executes queued directives until the training thread has an activity or is blocked.
    pub fn execute_directives(&mut self, id: ProcessId) {
        while let Some(worker) = self.workers.get_mut(&id) {
            if worker.is_suspended || worker.is_training_blocked || !matches!(worker.activity, Activity::Idle) {
                return;
            }
            let Some(v1::Directive { generation, directive: Some(directive) }) = worker.directives.pop_front() else {
                return;
            };
            if generation <= worker.released_up_to && !matches!(directive, Directive::Abandon(_)) {
                continue;
            }
            self.execute_directive(id, generation, directive);
        }
    }

    /// Executes a directive, or starts the activity that it requires.
    fn execute_directive(&mut self, id: ProcessId, generation: u64, directive: Directive) {
        self.check_directive(id, generation, &directive);
        let is_saver_idle = self.is_saver_idle(id);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        match directive {
            Directive::Rendezvous(rendezvous) => {
                let earlier_generation = worker.generation.replace(generation);
                (worker.rank, worker.round) = (rendezvous.rank, 0);
                let are_reachable = self.unreachable_peers(id, &rendezvous.peers).is_empty();
                let duration = if are_reachable { self.latency() } else { PEER_CHECK_TIMEOUT };
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.activity = Activity::CheckingPeers(rendezvous);
                }
                if let Some(earlier_generation) = earlier_generation {
                    let is_silent = false;
                    self.release_collective(id, earlier_generation, is_silent);
                }
                self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
            }
            Directive::Train(train) => self.start_step(id, train),
            Directive::Evaluate(evaluate) => self.start_captioning(id, generation, evaluate),
            Directive::Checkpoint(checkpoint) => {
                worker.activity = Activity::CopyingState(checkpoint);
                let duration = Time::from_millis(self.rng.random_range(5..20));
                self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
            }
            Directive::Advance(v1::Advance { stage }) => {
                worker.position = Some(v1::Position { stage, step: 0, generation });
                self.report(id, Message::Advanced(v1::Advanced { generation, stage }));
            }
            Directive::Abandon(_) => {
                self.release_generation(id, generation);
                self.report_idle(id, generation);
            }
            Directive::Finish(_) if is_saver_idle => self.report(id, Message::Finished(v1::Finished {})),
            Directive::Finish(_) => worker.activity = Activity::Finishing,
            // The connection handles these directives.
            Directive::Leave(_) | Directive::Halt(_) => {}
        }
    }

    /// The worker ids of the peers that this worker cannot reach.
    fn unreachable_peers(&self, id: ProcessId, peers: &[v1::Peer]) -> Vec<u32> {
        let is_partitioned = |id: ProcessId| self.network.is_partitioned(id, Direction::BetweenWorkers);
        let process_id = |peer: &v1::Peer| peer.store_address.split_once(':')?.1.parse().ok().map(ProcessId);
        let can_reach =
            |other: ProcessId| !is_partitioned(id) && !is_partitioned(other) && self.workers.contains_key(&other);
        let is_unreachable = |peer: &&v1::Peer| !process_id(peer).is_some_and(can_reach);
        peers.iter().filter(is_unreachable).map(|peer| peer.worker_id).collect()
    }

    /// Enters the rendezvous if all peers are reachable; else reports the unreachable ones.
    fn enter_rendezvous(&mut self, id: ProcessId, generation: u64, rendezvous: v1::Rendezvous) {
        let (unreachable, world_size) = (self.unreachable_peers(id, &rendezvous.peers), rendezvous.world_size);
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if unreachable.is_empty() {
            worker.activity = Activity::AwaitingRendezvous(rendezvous);
            let timeout = if worker.abandoned_up_to >= generation { Time::ZERO } else { RENDEZVOUS_TIMEOUT };
            self.schedule_wake_up(id, timeout, WakeReason::CollectiveFailed);
            self.join_rendezvous(id, generation, world_size);
        } else {
            // The worker is not in the collective yet, so the other members do not notice.
            (worker.generation, worker.released_up_to) = (None, worker.released_up_to.max(generation));
            let reason = "cannot reach peers".to_owned();
            self.report_failure(
                id,
                v1::Failed { generation, reason, unreachable_workers: unreachable, ..Default::default() },
            );
        }
    }

    /// Starts the next step of a grant.
    fn start_step(&mut self, id: ProcessId, train: v1::Train) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let position = worker.position.as_ref().map(Position::from).unwrap_or_default();
        let granted = train.first_step..train.first_step + u64::from(train.steps);
        let is_granted = position.stage == train.stage && granted.contains(&position.step);
        assert!(is_granted, "{train:?} does not fit a worker at {position}");
        worker.share = (train.share_begin, train.share_end);
        let samples = f64::from(train.share_end - train.share_begin);
        worker.activity = Activity::Computing(train);
        // `step_duration` is the time for a share of 4 samples, half a batch of 8.
        worker.compute_time = worker.step_duration.mul_f64(self.rng.random_range(0.5..1.5) * samples / 4.0);
        let duration = worker.compute_time;
        self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
    }

    /// Handles a wake-up of the training thread.
    pub fn handle_training_wake_up(&mut self, id: ProcessId, wake_up: u64, reason: WakeReason) {
        let is_saver_idle = self.is_saver_idle(id);
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.wake_up == wake_up) else { return };
        let generation = worker.generation.unwrap_or_default();
        let is_abandoned = worker.abandoned_up_to >= generation;
        let activity = std::mem::take(&mut worker.activity);
        match activity {
            Activity::Idle => {}
            Activity::CheckingPeers(rendezvous) => self.enter_rendezvous(id, generation, rendezvous),
            Activity::ReceivingState(rendezvous) if reason == WakeReason::CollectiveFailed => {
                // The failed copy may have overwritten a part of the worker's own state.
                if rendezvous.source_rank != Some(rendezvous.rank) && self.rng.random() {
                    worker.position = None;
                }
                self.end_generation(id, is_abandoned);
            }
            _ if reason == WakeReason::CollectiveFailed => self.end_generation(id, is_abandoned),
            Activity::Computing(_) if is_abandoned => self.end_generation(id, is_abandoned),
            Activity::Computing(train) => {
                worker.activity = Activity::AwaitingAllReduce(train);
                worker.round += 1;
                let round = worker.round;
                self.enter_round(id, generation, round);
            }
            Activity::ReceivingState(rendezvous) => self.adopt_state(id, generation, &rendezvous),
            Activity::ApplyingUpdate(train) => self.apply_update(id, generation, train),
            Activity::Captioning(evaluate) => self.report_captions(id, generation, evaluate),
            Activity::CopyingState(checkpoint) => self.enqueue_save(id, generation, checkpoint),
            Activity::AwaitingSaver => {}
            Activity::Finishing if is_saver_idle => self.report(id, Message::Finished(v1::Finished {})),
            Activity::Finishing => worker.activity = Activity::Finishing,
            Activity::AwaitingRendezvous(_) | Activity::AwaitingAllReduce(_) => {
                unreachable!("other members end this wait")
            }
        }
        self.execute_directives(id);
    }

    /// Adopts the generation's initial state, and reports that it is ready.
    fn adopt_state(&mut self, id: ProcessId, generation: u64, rendezvous: &v1::Rendezvous) {
        let Some(state) = self.collectives[&generation].initial_state.clone() else {
            if rendezvous.rank == 0 {
                self.release_generation(id, generation);
                let (reason, damaged_checkpoint) =
                    ("the checkpoint is damaged".to_owned(), rendezvous.checkpoint.clone());
                self.report_failure(id, v1::Failed { generation, reason, damaged_checkpoint, ..Default::default() });
            } else if let Some(worker) = self.workers.get_mut(&id) {
                // Rank 0 could not read the checkpoint. This worker waits until rank 0 releases the
                // collective.
                worker.activity = Activity::ReceivingState(rendezvous.clone());
            }
            return;
        };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        (worker.history, worker.position) = (state, rendezvous.position);
        self.check_adopted(id, generation);
        let position = rendezvous.position;
        self.report(id, Message::Ready(v1::Ready { generation, position }));
    }

    /// Applies the update of a step and reports it; halts, or continues with the next granted step.
    fn apply_update(&mut self, id: ProcessId, generation: u64, train: v1::Train) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let reached = Position::from(&worker.position.unwrap_or_default()).after(1);
        let reported_position = reached.in_generation(generation);
        let (round, seconds) = (worker.round, worker.compute_time.as_secs_f64());
        worker.history.push(Update { position: reached, generation });
        worker.position = Some(reported_position);
        self.check_applied(id, generation);
        let kl = (&Summary::of([score(self.scenario.salt + 1, reached)])).into();
        let step_done = v1::StepDone {
            position: Some(reported_position),
            loss_weight: 1.0,
            seconds,
            samples: train.share_end - train.share_begin,
            summaries: [("kl".to_owned(), kl)].into(),
            ..Default::default()
        };
        self.report(id, Message::StepDone(step_done));
        if self.collectives[&generation].halt_rounds.contains(&round) {
            self.halt_generation(id, generation);
        } else if reached.step < train.first_step + u64::from(train.steps) {
            self.start_step(id, train);
        }
    }

    /// Starts to caption the next range, if there is one.
    fn start_captioning(&mut self, id: ProcessId, generation: u64, evaluate: v1::Evaluate) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        if evaluate.ranges.is_empty() {
            return;
        }
        let is_abandoned = worker.abandoned_up_to >= generation;
        if is_abandoned {
            self.end_generation(id, is_abandoned);
            return;
        }
        worker.activity = Activity::Captioning(evaluate);
        let duration = worker.step_duration.mul_f64(self.rng.random_range(1.0..1.5));
        self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
    }

    /// Reports the captions of the first remaining range, and continues with the next one.
    fn report_captions(&mut self, id: ProcessId, generation: u64, mut evaluate: v1::Evaluate) {
        let worker = &self.workers[&id];
        let range = evaluate.ranges.remove(0);
        let position = worker.position.unwrap_or_default();
        let caption = format!("{} {} {}", position.stage, position.step, digest(&worker.history));
        let item = |image| v1::EvaluationItem {
            image: format!("image {image:03}"),
            caption: caption.clone(),
            image_id: Some(image),
            ..Default::default()
        };
        let items: Vec<_> = (range.begin..range.end).step_by(self.scenario.decodable_image_stride).map(item).collect();
        let evaluation = evaluate.evaluation;
        self.captioned_ranges.push((id, range.into()));
        // Of the three ranges, only the one that begins at 50 is sent in two messages.
        let first_len = if range.begin.is_multiple_of(100) { 0 } else { items.len() / 2 };
        let (first, second) = items.split_at(first_len);
        for (items, more) in
            [(first, true), (second, false)].into_iter().filter(|(items, more)| !more || !items.is_empty())
        {
            let items = v1::EvaluationItems { generation, evaluation, range: Some(range), items: items.to_vec(), more };
            self.report(id, Message::EvaluationItems(items));
        }
        let is_halted = self.workers.get(&id).is_some_and(|worker| worker.halted_generation == generation);
        if is_halted && !evaluate.ranges.is_empty() {
            self.halt_generation(id, generation);
        } else {
            self.start_captioning(id, generation, evaluate);
        }
    }

    /// Releases a halted generation and reports that the worker is idle.
    fn halt_generation(&mut self, id: ProcessId, generation: u64) {
        self.release_generation(id, generation);
        self.report_idle(id, generation);
    }

    /// Releases this worker's generation, because it is abandoned or its collective has failed.
    /// Unless it is abandoned, reports the failure.
    fn end_generation(&mut self, id: ProcessId, is_abandoned: bool) {
        let Some(generation) = self.workers.get(&id).and_then(|worker| worker.generation) else { return };
        self.release_generation(id, generation);
        if !is_abandoned {
            self.report_failure(
                id,
                v1::Failed { generation, reason: "collective failed".to_owned(), ..Default::default() },
            );
        }
    }

    /// Releases a generation: the worker leaves its collective and ignores its later directives.
    pub fn release_generation(&mut self, id: ProcessId, generation: u64) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.released_up_to = worker.released_up_to.max(generation);
        if let Some(generation) = worker.generation.take() {
            let is_silent = false;
            self.release_collective(id, generation, is_silent);
        }
    }

    /// Reports a failure, and that the worker is idle unless the failure is fatal.
    pub fn report_failure(&mut self, id: ProcessId, failed: v1::Failed) {
        let (generation, is_fatal) = (failed.generation, failed.fatal);
        self.report(id, Message::Failed(failed));
        if !is_fatal {
            self.report_idle(id, generation);
        }
    }

    fn report_idle(&mut self, id: ProcessId, generation: u64) {
        let Some(position) = self.workers.get(&id).map(|worker| worker.position) else { return };
        let saving = self.latest_save(id);
        self.report(id, Message::Idle(v1::Idle { generation, position, saving }));
    }
}
