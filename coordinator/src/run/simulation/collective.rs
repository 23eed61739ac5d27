//! Simulated collectives: operations that the members of a generation can only complete together,
//! in rounds. The first round is the rendezvous; every other one is an all-reduce.
//!
//! Each member completes a round at its own time after all have entered it: when a member dies in
//! between, some have applied the step and others have not.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;
use rand::Rng;

use super::{
    History, WorkerId,
    network::Direction,
    worker::{Activity, Wake},
    world::SimWorld,
};

#[derive(Debug, Default)]
pub struct Collective {
    world: u32,
    /// The round that each member has entered.
    arrived: BTreeMap<WorkerId, u64>,
    /// Rounds in which a member has raised the halt flag.
    pub halting: BTreeSet<u64>,
    /// The initial state of all members; set when all have met.
    pub state: Option<History>,
    /// A member has released the collective, or has died.
    broken: bool,
}

impl Collective {
    /// The last round that all members have entered.
    fn common(&self) -> Option<u64> {
        let all = self.arrived.len() == self.world as usize;
        self.arrived.values().min().copied().filter(|_| all && !self.broken)
    }
}

impl SimWorld {
    /// A worker enters the rendezvous.
    pub fn meet(&mut self, id: WorkerId, generation: u64, world: u32) {
        self.collectives.entry(generation).or_default().world = world;
        self.arrive(id, generation, 0);
    }

    /// A worker enters a round and waits for the others.
    pub fn arrive(&mut self, id: WorkerId, generation: u64, round: u64) {
        let collective = self.collectives.entry(generation).or_default();
        collective.arrived.insert(id, round);
        if self.workers.get(&id).is_some_and(|worker| worker.halted == generation) {
            collective.halting.insert(round);
        }
        if collective.broken {
            self.notice(id);
        } else {
            self.release(generation);
        }
    }

    /// Completes a round that all members have entered, if they can reach each other.
    fn release(&mut self, generation: u64) {
        let collective = &self.collectives[&generation];
        let Some(round) = collective.common() else { return };
        let members: Vec<WorkerId> = collective.arrived.keys().copied().collect();
        if members.len() > 1 && members.iter().any(|id| self.network.is_cut(*id, Direction::Peers)) {
            return;
        }
        self.check_shares(&members);
        for id in members {
            let arrived = self.collectives[&generation].arrived[&id];
            let Some(worker) = self.workers.get_mut(&id).filter(|_| arrived == round) else { continue };
            worker.doing = match std::mem::take(&mut worker.doing) {
                Activity::Meeting(rendezvous) => Activity::Adopting(rendezvous),
                Activity::Reducing(train) => Activity::Applying(train),
                other => {
                    worker.doing = other;
                    continue;
                }
            };
            if let Activity::Adopting(rendezvous) = &worker.doing {
                let rendezvous = rendezvous.clone();
                self.lay_out_state(id, generation, &rendezvous);
            }
            let takes = self.latency();
            self.wake(id, takes, Wake::Done);
        }
    }

    pub fn release_all(&mut self) {
        for generation in self.collectives.keys().copied().collect::<Vec<_>>() {
            self.release(generation);
        }
    }

    /// Publishes the initial state: by the source, or by the member that reads the checkpoint.
    fn lay_out_state(&mut self, id: WorkerId, generation: u64, rendezvous: &v1::Rendezvous) {
        let state = match rendezvous.source_rank {
            Some(source) if source == rendezvous.rank => {
                let worker = &self.workers[&id];
                let at = worker.position.map(|position| (position.stage, position.step));
                let wanted = rendezvous.position.map(|position| (position.stage, position.step));
                assert_eq!(at, wanted, "the source is at the place");
                worker.history.clone()
            }
            None if rendezvous.rank == 0 && rendezvous.checkpoint.is_empty() => History::new(),
            None if rendezvous.rank == 0 && self.disk.damaged.contains(&rendezvous.checkpoint) => return,
            None if rendezvous.rank == 0 => match self.disk.checkpoints.get(&rendezvous.checkpoint) {
                Some(history) => history.clone(),
                None => {
                    let name = &rendezvous.checkpoint;
                    assert_ne!(self.invariants.live, Some(generation), "{name} is not there to start from");
                    return;
                }
            },
            _ => return,
        };
        self.collectives.entry(generation).or_default().state = Some(state);
    }

    /// A member releases its collective, or dies. The members that wait for it notice, unless its
    /// machine has vanished silently.
    pub fn let_go(&mut self, id: WorkerId, generation: u64, silently: bool) {
        let Some(collective) = self.collectives.get_mut(&generation).filter(|_| !silently) else { return };
        let first = !std::mem::replace(&mut collective.broken, true);
        let others: Vec<WorkerId> = collective.arrived.keys().copied().filter(|other| *other != id).collect();
        for other in others.into_iter().filter(|_| first) {
            // A member that has received everything may still complete the round.
            let complete = matches!(self.workers.get(&other).map(|worker| &worker.doing), Some(Activity::Applying(_)));
            if !complete || self.rng.random() {
                self.notice(other);
            }
        }
    }

    /// A worker that waits in a collective notices that it is broken.
    fn notice(&mut self, id: WorkerId) {
        let waits = |doing: &Activity| {
            matches!(
                doing,
                Activity::Meeting(_) | Activity::Adopting(_) | Activity::Reducing(_) | Activity::Applying(_)
            )
        };
        if self.workers.get(&id).is_some_and(|worker| waits(&worker.doing)) {
            let latency = self.latency();
            self.wake(id, latency, Wake::Broken);
        }
    }
}
