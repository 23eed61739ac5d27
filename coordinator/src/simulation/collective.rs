//! Simulated collectives. The members of a generation complete its rounds together: the first round
//! is the rendezvous, each later one an all-reduce.
//!
//! A round is complete once all members have entered it. The members notice the completion at
//! different times. If a member fails between these times, some members apply the step and others
//! do not.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;
use rand::Rng;

use super::{
    ProcessId, UpdateHistory,
    cluster::Cluster,
    network::Direction,
    worker::{Activity, WakeReason},
};

/// The collective of a generation.
#[derive(Debug, Default)]
pub struct Collective {
    world_size: u32,
    /// The last round that each member has entered.
    entered_rounds: BTreeMap<ProcessId, u64>,
    /// Rounds in which a member has raised the halt flag.
    pub halt_rounds: BTreeSet<u64>,
    /// The initial state of all members; set when the rendezvous is complete.
    pub initial_state: Option<UpdateHistory>,
    /// Whether a member has released the collective, or has died, except silently.
    is_broken: bool,
}

impl Collective {
    /// The last round that all members have entered. None if the collective is broken, or if some
    /// members have not entered the rendezvous.
    fn last_common_round(&self) -> Option<u64> {
        let is_full = self.entered_rounds.len() == self.world_size as usize;
        self.entered_rounds.values().min().copied().filter(|_| is_full && !self.is_broken)
    }
}

impl Cluster {
    /// Adds a worker to the collective and enters it into the rendezvous.
    pub fn join_rendezvous(&mut self, id: ProcessId, generation: u64, world_size: u32) {
        self.collectives.entry(generation).or_default().world_size = world_size;
        self.enter_round(id, generation, 0);
    }

    /// Enters a worker into a round, which completes if it is the last member to enter.
    pub fn enter_round(&mut self, id: ProcessId, generation: u64, round: u64) {
        let collective = self.collectives.entry(generation).or_default();
        collective.entered_rounds.insert(id, round);
        if self.workers.get(&id).is_some_and(|worker| worker.training.flags().halt.is_raised()) {
            collective.halt_rounds.insert(round);
        }
        if collective.is_broken {
            self.notify_collective_failure(id);
        } else {
            self.complete_round(generation);
        }
    }

    /// Completes the round that all members have entered, if there is one and they can reach each
    /// other.
    fn complete_round(&mut self, generation: u64) {
        let collective = &self.collectives[&generation];
        let Some(round) = collective.last_common_round() else { return };
        let members: Vec<ProcessId> = collective.entered_rounds.keys().copied().collect();
        if members.len() > 1 && members.iter().any(|id| self.network.is_partitioned(*id, Direction::BetweenWorkers)) {
            return;
        }
        self.check_shares(&members);
        for id in members {
            let entered_round = self.collectives[&generation].entered_rounds[&id];
            let Some(worker) = self.workers.get_mut(&id).filter(|_| entered_round == round) else { continue };
            worker.activity = match std::mem::take(&mut worker.activity) {
                Activity::AwaitingRendezvous(rendezvous) => Activity::ReceivingState(rendezvous),
                Activity::AwaitingAllReduce(train) => Activity::ApplyingUpdate(train),
                other => {
                    worker.activity = other;
                    continue;
                }
            };
            if let Activity::ReceivingState(rendezvous) = &worker.activity {
                let rendezvous = rendezvous.clone();
                self.publish_initial_state(id, generation, &rendezvous);
            }
            let duration = self.latency();
            self.schedule_wake_up(id, duration, WakeReason::ActivityDone);
        }
    }

    /// Completes the rounds that a partition between workers has held up.
    pub fn complete_all_rounds(&mut self) {
        for generation in self.collectives.keys().copied().collect::<Vec<_>>() {
            self.complete_round(generation);
        }
    }

    /// Sets the generation's initial state if this member provides it: the source, or rank 0 from
    /// the checkpoint or the seed.
    fn publish_initial_state(&mut self, id: ProcessId, generation: u64, rendezvous: &v1::Rendezvous) {
        let state = match rendezvous.source_rank {
            Some(source) if source == rendezvous.rank => {
                let worker = &self.workers[&id];
                let source_position = worker.position().map(|position| (position.stage, position.step));
                let start = rendezvous.position.map(|position| (position.stage, position.step));
                assert_eq!(source_position, start, "the source holds the state at the start");
                worker.history.clone()
            }
            None if rendezvous.rank == 0 && rendezvous.checkpoint.is_empty() => UpdateHistory::new(),
            None if rendezvous.rank == 0 && self.disk.damaged.contains(&rendezvous.checkpoint) => return,
            None if rendezvous.rank == 0 => match self.disk.checkpoints.get(&rendezvous.checkpoint) {
                Some(history) => history.clone(),
                None => {
                    let name = &rendezvous.checkpoint;
                    assert_ne!(
                        self.invariants.current_generation,
                        Some(generation),
                        "the checkpoint {name} does not exist"
                    );
                    return;
                }
            },
            _ => return,
        };
        self.collectives.entry(generation).or_default().initial_state = Some(state);
    }

    /// Breaks the collective, because a member releases it or dies: the members that wait in it
    /// notice. Does nothing if `is_silent`: the member's machine is lost, and the others wait on.
    pub fn release_collective(&mut self, id: ProcessId, generation: u64, is_silent: bool) {
        let Some(collective) = self.collectives.get_mut(&generation).filter(|_| !is_silent) else { return };
        let was_broken = std::mem::replace(&mut collective.is_broken, true);
        let others: Vec<ProcessId> = collective.entered_rounds.keys().copied().filter(|other| *other != id).collect();
        for other in others.into_iter().filter(|_| !was_broken) {
            // A member for which the round is complete may still apply the update.
            let is_complete =
                matches!(self.workers.get(&other).map(|worker| &worker.activity), Some(Activity::ApplyingUpdate(_)));
            if !is_complete || self.rng.random() {
                self.notify_collective_failure(other);
            }
        }
    }

    /// Schedules a failure for a worker that waits in a broken collective.
    fn notify_collective_failure(&mut self, id: ProcessId) {
        let is_waiting = |activity: &Activity| {
            matches!(
                activity,
                Activity::AwaitingRendezvous(_)
                    | Activity::ReceivingState(_)
                    | Activity::AwaitingAllReduce(_)
                    | Activity::ApplyingUpdate(_)
            )
        };
        if self.workers.get(&id).is_some_and(|worker| is_waiting(&worker.activity)) {
            let latency = self.latency();
            self.schedule_wake_up(id, latency, WakeReason::CollectiveFailed);
        }
    }
}
