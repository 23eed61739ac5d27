//! The training thread of a simulated worker: the work that [`worker_protocol::Training`] orders,
//! each piece an activity that takes virtual time.
//!
//! It can be interrupted while it waits for other members, between two ranges of captions, and
//! before it applies an update, but not during a computation. For a checkpoint it only copies the
//! state; the saver writes the copy.

use std::hash::{DefaultHasher, Hash, Hasher};

use dico_engine::{Time, plan::Position};
use proto::v1;
use rand::Rng;
use summary_statistics::Summary;
use worker_protocol::{Command, GenerationFailure, Response, Work};

use super::{
    ProcessId, Update,
    cluster::Cluster,
    network::Direction,
    score,
    worker::{Activity, WakeReason, Worker},
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
    format!("{:064x}", hasher.finish())
}

impl Cluster {
    /// Queues a command for the training thread. Wakes the thread if it waits in the collective of
    /// a generation that was abandoned meanwhile.
    pub fn enqueue_command(&mut self, id: ProcessId, command: Command) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.commands.push_back(command);
        self.wake_if_abandoned(id);
        self.execute_commands(id);
    }

    /// Ends the wait in the collective of an abandoned generation.
    pub fn wake_if_abandoned(&mut self, id: ProcessId) {
        let Some(worker) = self.workers.get(&id) else { return };
        let is_waiting = matches!(
            &worker.activity,
            Activity::AwaitingRendezvous(_) | Activity::ReceivingState(_) | Activity::AwaitingAllReduce(_)
        );
        if is_waiting && worker.training.flags().abandon.is_raised() {
            self.schedule_wake_up(id, Time::ZERO, WakeReason::CollectiveFailed);
        }
    }

    /// Executes queued commands until the training thread has an activity or is blocked.
    pub fn execute_commands(&mut self, id: ProcessId) {
        while let Some(worker) = self.workers.get_mut(&id) {
            if worker.is_suspended || worker.is_training_blocked || !matches!(worker.activity, Activity::Idle) {
                return;
            }
            let Some(command) = worker.commands.pop_front() else { return };
            if !worker.training.is_obsolete(&command) {
                self.check_directive(id, &command.directive);
            }
            let Some(worker) = self.workers.get_mut(&id) else { return };
            let response = worker.training.begin(command);
            self.follow(id, response);
        }
    }

    /// Sends the reports of a response and begins its work, and does the same with the responses to
    /// work that takes no time.
    fn follow(&mut self, id: ProcessId, response: Response) {
        let mut next = Some(response);
        while let Some(Response { reports, work }) = next {
            reports.into_iter().for_each(|report| self.report(id, report));
            next = work.and_then(|work| self.begin_work(id, work));
        }
    }

    /// Fails a worker: its process ends once it has reported the reason.
    pub fn fail_worker(&mut self, id: ProcessId, reason: &str) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.activity = Activity::Idle;
        let response = worker.training.cannot_continue(reason.to_owned());
        self.follow(id, response);
    }

    /// Begins work. Returns the response to its end if it takes no time.
    fn begin_work(&mut self, id: ProcessId, work: Work) -> Option<Response> {
        let is_saver_idle = self.is_saver_idle(id);
        let worker = self.workers.get_mut(&id)?;
        match work {
            Work::Rendezvous(rendezvous) => self.begin_rendezvous(id, rendezvous),
            Work::Step(train) => {
                let samples = f64::from(train.share_end - train.share_begin);
                worker.activity = Activity::Computing(train);
                // `step_duration` is the time for a share of 4 samples, half a batch of 8.
                worker.compute_time = worker.step_duration.mul_f64(self.rng.random_range(0.5..1.5) * samples / 4.0);
                let duration = worker.compute_time;
                self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
            }
            Work::Caption(evaluate) => {
                worker.activity = Activity::Captioning(evaluate);
                let duration = worker.step_duration.mul_f64(self.rng.random_range(1.0..1.5));
                self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
            }
            Work::CopyState(checkpoint) => {
                worker.activity = Activity::CopyingState(checkpoint);
                let duration = Time::from_millis(self.rng.random_range(5..20));
                self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
            }
            Work::EnterStage(_) => return Some(worker.training.stage_entered()),
            Work::Release => {
                let generation = worker.generation.take();
                if let Some(generation) = generation {
                    let is_silent = false;
                    self.release_collective(id, generation, is_silent);
                }
                let saving = self.latest_save(id);
                return Some(self.workers.get_mut(&id)?.training.released(saving));
            }
            Work::AwaitSaves if is_saver_idle => return Some(worker.training.saves_completed()),
            Work::AwaitSaves => worker.activity = Activity::Finishing,
        }
        None
    }

    /// Leaves an earlier collective, and checks that the peers are reachable.
    fn begin_rendezvous(&mut self, id: ProcessId, rendezvous: v1::Rendezvous) {
        let are_reachable = self.unreachable_peers(id, &rendezvous.peers).is_empty();
        let duration = if are_reachable { self.latency() } else { PEER_CHECK_TIMEOUT };
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let earlier_generation = worker.generation.replace(worker.training.generation());
        (worker.rank, worker.round) = (rendezvous.rank, 0);
        worker.activity = Activity::CheckingPeers(rendezvous);
        if let Some(earlier_generation) = earlier_generation {
            let is_silent = false;
            self.release_collective(id, earlier_generation, is_silent);
        }
        self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
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

    /// Enters the rendezvous if all peers are reachable; else returns the response to the failure.
    fn enter_rendezvous(&mut self, id: ProcessId, generation: u64, rendezvous: v1::Rendezvous) -> Option<Response> {
        let (unreachable, world_size) = (self.unreachable_peers(id, &rendezvous.peers), rendezvous.world_size);
        let worker = self.workers.get_mut(&id)?;
        if unreachable.is_empty() {
            worker.activity = Activity::AwaitingRendezvous(rendezvous);
            let is_abandoned = worker.training.flags().abandon.is_raised();
            let timeout = if is_abandoned { Time::ZERO } else { RENDEZVOUS_TIMEOUT };
            self.schedule_wake_up(id, timeout, WakeReason::CollectiveFailed);
            self.join_rendezvous(id, generation, world_size);
            return None;
        }
        // The worker is not in the collective yet, so the other members do not notice.
        worker.generation = None;
        let reason = "cannot reach peers".to_owned();
        let failure = GenerationFailure { reason, unreachable_workers: unreachable, ..Default::default() };
        Some(worker.training.failed(failure))
    }

    /// Handles a wake-up of the training thread.
    pub fn handle_training_wake_up(&mut self, id: ProcessId, wake_up: u64, reason: WakeReason) {
        let Some(worker) = self.workers.get_mut(&id).filter(|worker| worker.wake_up == wake_up) else { return };
        let activity = std::mem::take(&mut worker.activity);
        if let Some(response) = self.end_activity(id, activity, reason) {
            self.follow(id, response);
        }
        self.execute_commands(id);
    }

    /// Ends an activity. Returns the response to the end of the work, unless the work has another
    /// activity.
    fn end_activity(&mut self, id: ProcessId, activity: Activity, reason: WakeReason) -> Option<Response> {
        let is_saver_idle = self.is_saver_idle(id);
        let worker = self.workers.get_mut(&id)?;
        let generation = worker.generation.unwrap_or_default();
        match activity {
            Activity::Idle => None,
            Activity::AwaitingSaver => Some(worker.training.state_copied()),
            Activity::CheckingPeers(rendezvous) => self.enter_rendezvous(id, generation, rendezvous),
            Activity::ReceivingState(rendezvous) if reason == WakeReason::CollectiveFailed => {
                // The failed copy may have overwritten a part of the worker's own state.
                if rendezvous.source_rank != Some(rendezvous.rank) && self.rng.random() {
                    worker.training.replace_state(None);
                }
                Some(worker.fail_in_collective())
            }
            _ if reason == WakeReason::CollectiveFailed => Some(worker.fail_in_collective()),
            Activity::Computing(_) if worker.training.flags().abandon.is_raised() => Some(worker.training.abandoned()),
            Activity::Computing(train) => {
                worker.activity = Activity::AwaitingAllReduce(train);
                worker.round += 1;
                let round = worker.round;
                self.enter_round(id, generation, round);
                None
            }
            Activity::ReceivingState(rendezvous) => self.adopt_state(id, generation, rendezvous),
            Activity::ApplyingUpdate(train) => self.apply_update(id, generation, &train),
            Activity::Captioning(evaluate) => self.caption(id, &evaluate),
            Activity::CopyingState(checkpoint) => {
                self.enqueue_save(id, checkpoint);
                let worker = self.workers.get_mut(&id)?;
                matches!(worker.activity, Activity::Idle).then(|| worker.training.state_copied())
            }
            Activity::Finishing if is_saver_idle => Some(worker.training.saves_completed()),
            Activity::Finishing => {
                worker.activity = Activity::Finishing;
                None
            }
            Activity::AwaitingRendezvous(_) | Activity::AwaitingAllReduce(_) => {
                unreachable!("other members end this wait")
            }
        }
    }

    /// Adopts the generation's initial state.
    fn adopt_state(&mut self, id: ProcessId, generation: u64, rendezvous: v1::Rendezvous) -> Option<Response> {
        let state = self.collectives[&generation].initial_state.clone();
        let worker = self.workers.get_mut(&id)?;
        match state {
            Some(state) => {
                worker.history = state;
                let response = worker.training.formed();
                self.check_adopted(id, generation);
                Some(response)
            }
            None if rendezvous.rank == 0 => {
                let reason = "the checkpoint is damaged".to_owned();
                let damaged_checkpoint = rendezvous.checkpoint;
                Some(worker.training.failed(GenerationFailure { reason, damaged_checkpoint, ..Default::default() }))
            }
            // Rank 0 could not read the checkpoint. This worker waits until rank 0 releases the
            // collective.
            None => {
                worker.activity = Activity::ReceivingState(rendezvous);
                None
            }
        }
    }

    /// Applies the update of a step.
    fn apply_update(&mut self, id: ProcessId, generation: u64, train: &v1::Train) -> Option<Response> {
        let worker = self.workers.get_mut(&id)?;
        let reached = Position::from(&worker.position().unwrap_or_default()).after(1);
        let (round, seconds) = (worker.round, worker.compute_time.as_secs_f64());
        worker.history.push(Update { position: reached, generation });
        self.check_applied(id, generation);
        let kl = (&Summary::of([score(self.scenario.salt + 1, reached)])).into();
        let report = v1::StepDone {
            loss_weight: 1.0,
            seconds,
            samples: train.share_end - train.share_begin,
            summaries: [("kl".to_owned(), kl)].into(),
            ..Default::default()
        };
        let is_halt_requested = self.collectives[&generation].halt_rounds.contains(&round);
        Some(self.workers.get_mut(&id)?.training.step_applied(report, is_halt_requested))
    }

    /// Captions the first range.
    fn caption(&mut self, id: ProcessId, evaluate: &v1::Evaluate) -> Option<Response> {
        let worker = self.workers.get_mut(&id)?;
        let range = evaluate.ranges[0];
        let position = worker.position().unwrap_or_default();
        let caption = format!("{} {} {}", position.stage, position.step, digest(&worker.history));
        let item = |image| v1::EvaluationItem {
            image: format!("image {image:03}"),
            caption: caption.clone(),
            image_id: Some(image),
            ..Default::default()
        };
        let mut items: Vec<_> =
            (range.begin..range.end).step_by(self.scenario.decodable_image_stride).map(item).collect();
        self.captioned_ranges.push((id, range.into()));
        // Of the three ranges, only the one that begins at 50 is sent in two messages.
        let rest = items.split_off(if range.begin.is_multiple_of(100) { items.len() } else { items.len() / 2 });
        let parts = [items, rest].into_iter().filter(|part| !part.is_empty()).collect();
        Some(worker.training.captioned(parts))
    }
}

impl Worker {
    /// Its collective has failed, or its wait there has ended because the generation is abandoned.
    fn fail_in_collective(&mut self) -> Response {
        match self.training.flags().abandon.is_raised() {
            true => self.training.abandoned(),
            false => {
                self.training.failed(GenerationFailure { reason: "collective failed".to_owned(), ..Default::default() })
            }
        }
    }
}
