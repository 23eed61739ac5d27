//! Invariants of workers: directives, shares, and the updates of their states.

use dico_engine::plan::Position;
use proto::{v1, v1::directive::Directive};
use worker_protocol::CheckedDirective;

use super::prefix_up_to;
use crate::simulation::{ProcessId, Update, cluster::Cluster, worker::Activity};

impl Cluster {
    /// Asserts that all members of a generation begin the same directives, in the same order.
    pub fn check_directive(&mut self, id: ProcessId, directive: &CheckedDirective) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let generation = directive.generation();
        // The directive without the fields that differ between members.
        let common = match directive.kind().clone() {
            Directive::Rendezvous(rendezvous) => {
                assert!(
                    worker.generation.is_none_or(|earlier| earlier < generation),
                    "generation {generation} follows a later one"
                );
                worker.directives_begun = 0;
                Directive::Rendezvous(v1::Rendezvous { rank: 0, peers: vec![], ..rendezvous })
            }
            Directive::Train(train) => {
                let position = worker.position().map(|position| (position.stage, position.step));
                assert_eq!(position, Some((train.stage, train.first_step)), "{train:?} is for another position");
                Directive::Train(v1::Train { share_begin: 0, share_end: 0, ..train })
            }
            Directive::Evaluate(evaluate) => Directive::Evaluate(v1::Evaluate { ranges: vec![], ..evaluate }),
            other @ (Directive::Checkpoint(_) | Directive::Advance(_)) => other,
            Directive::Abandon(_) | Directive::Halt(_) | Directive::Finish(_) | Directive::Leave(_) => return,
        };
        if !matches!(common, Directive::Rendezvous(_)) {
            assert_eq!(worker.generation, Some(generation), "{common:?} is for another generation than the worker's");
        }
        let begun_directives = self.invariants.generation_directives.entry(generation).or_default();
        match begun_directives.get(worker.directives_begun) {
            Some(other) => assert_eq!(*other, common, "generation {generation} has different directives"),
            None => begun_directives.push(common),
        }
        worker.directives_begun += 1;
    }

    /// Asserts that the shares of the members that are about to apply a step cover the batch
    /// exactly.
    pub fn check_shares(&self, members: &[ProcessId]) {
        let share = |id: &ProcessId| {
            let worker = self.workers.get(id)?;
            let Activity::AwaitingAllReduce(train) = &worker.activity else { return None };
            Some((worker.rank, train.stage, train.share_begin..train.share_end))
        };
        // There is nothing to check if a member has died since, or if the round is the rendezvous.
        let Some(mut shares) = members.iter().map(share).collect::<Option<Vec<_>>>() else { return };
        shares.sort_by_key(|(rank, ..)| *rank);
        let mut next_sample = 0;
        for (_, _, share) in &shares {
            assert_eq!(share.start, next_sample, "a sample is in no share, or in two");
            assert!(share.end > share.start, "a share is empty");
            next_sample = share.end;
        }
        let batch = self.scenario.file.stages[shares[0].1 as usize].batch;
        assert_eq!(next_sample, batch, "the shares do not cover the batch");
    }

    /// Asserts that all members of a generation begin with the same state, and that this is the
    /// committed state.
    pub fn check_adopted(&mut self, id: ProcessId, generation: u64) {
        let history = &self.workers[&id].history;
        let state = self.invariants.generation_states.entry(generation).or_insert_with(|| history.clone());
        assert_eq!(state, history, "a member of generation {generation} begins with another state");
        if self.invariants.current_generation == Some(generation) {
            assert_eq!(
                self.invariants.committed, *history,
                "generation {generation} does not begin with the committed state"
            );
        }
    }

    /// Asserts that all members of a generation train the same steps, each once and in order.
    pub fn check_applied(&mut self, id: ProcessId, generation: u64) {
        let history = &self.workers[&id].history;
        let [earlier @ .., last] = history.as_slice() else { return };
        let Position { stage, step } = last.position;
        let is_next_step = match earlier.last() {
            Some(Update { position: earlier, .. }) if earlier.stage == stage => earlier.step + 1 == step,
            Some(Update { position: earlier, .. }) => earlier.stage < stage && step == 1,
            None => step == 1,
        };
        assert!(is_next_step, "{last:?} was applied after {:?}", earlier.last());
        let state = self.invariants.generation_states.entry(generation).or_default();
        if state.len() < history.len() {
            state.push(*last);
            self.invariants.steps_trained += 1;
        }
        assert_eq!(
            prefix_up_to(state, last.position),
            history,
            "members of generation {generation} have trained different steps"
        );
    }
}
