//! Failure detection: removes members that send no message, that do not release their generation,
//! or that send heartbeats but do not finish the work that other members wait for.

use std::time::Duration;

use proto::v1;

use crate::{
    handler::membership::MembershipHandler,
    membership::{Member, MemberState, Membership, OverdueReason, Stall, release_timeout},
    outcome::Outcome,
    output::{Effect, Output},
    settings::Settings,
    state::{
        State,
        checkpoints::Checkpoints,
        generations::{Generation, Generations, PendingBoundary, RunPhase},
        history::History,
    },
    types::{Time, WorkerId},
};

/// An all-reduce that all members have entered times out after this multiple of
/// `heartbeat_timeout`, or after `stall_timeout` if that is shorter.
const ALL_REDUCE_TIMEOUT_FACTOR: u32 = 3;

/// Removes members that are overdue: silent, or slow to release their generation.
pub fn remove_overdue(state: &mut State, output: &mut Output, now: Time) {
    let heartbeat_timeout = state.settings.heartbeat_timeout();
    state.members.remove_expired(now);
    let overdue = state.members.find_overdue(now, heartbeat_timeout);
    let mut handler = MembershipHandler::new(state, output);
    for (worker_id, overdue_reason) in overdue {
        match overdue_reason {
            OverdueReason::NoMessage => {
                let seconds = heartbeat_timeout.as_secs_f64();
                handler.close_session(worker_id);
                let reason = format!("it sent no message within heartbeat_timeout ({seconds} s)");
                handler.remove_failed(now, worker_id, &reason);
            }
            OverdueReason::NotReleased(generation) => {
                let seconds = release_timeout(heartbeat_timeout).as_secs_f64();
                let reason = format!("it did not release generation {generation} within {seconds} s");
                handler.evict(now, worker_id, &reason);
            }
        }
    }
}

/// Detects stalls in the generation that forms or runs.
pub struct StallHandler<'a> {
    settings: &'a Settings,
    members: &'a mut Membership,
    generations: &'a mut Generations,
    history: &'a History,
    checkpoints: &'a Checkpoints,
    output: &'a mut Output,
}

impl<'a> StallHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { settings, members, generations, history, checkpoints, .. } = state;
        Self { settings, members, generations, history, checkpoints, output }
    }

    /// Evicts the members that the others have waited for longer than `stall_timeout`. Ends the
    /// generation if all members wait for each other.
    pub fn check(&mut self, now: Time) {
        let stall_timeout = self.settings.stall_timeout();
        let all_reduce_timeout = stall_timeout.min(ALL_REDUCE_TIMEOUT_FACTOR * self.settings.heartbeat_timeout());
        match self.find_stall(now, stall_timeout, all_reduce_timeout) {
            Some(Stall::Members(worker_ids)) => {
                let seconds = stall_timeout.as_secs_f64();
                let reason =
                    format!("it made no progress within stall_timeout ({seconds} s) while others waited for it");
                for worker_id in worker_ids {
                    self.output.add_effect(Effect::Evict { worker_id, reason: reason.clone() });
                }
            }
            Some(Stall::AllMembers) => {
                let seconds = all_reduce_timeout.as_secs_f64();
                let reason =
                    format!("all ranks have waited for each other for {seconds} s (see control.heartbeat_timeout)");
                let Generations { last_number, failure_counter, .. } = self.generations;
                let is_fatal = false;
                let must_fail = failure_counter.record(self.history.progress_count, *last_number, &reason, is_fatal);
                self.output.add_effect(Effect::EndGeneration { reason: reason.clone(), is_failure: true });
                if must_fail {
                    let reason = format!("generations keep failing without progress: {reason}");
                    self.output.add_effect(Effect::EndRun(Outcome::Failed(reason)));
                }
            }
            None => {}
        }
    }

    /// The stall of the current generation; none if there is none.
    fn find_stall(&mut self, now: Time, stall_timeout: Duration, all_reduce_timeout: Duration) -> Option<Stall> {
        let generation = self.generations.current.as_ref();
        let pending = generation.map(|generation| self.members_with_pending_directives(generation)).unwrap_or_default();
        // Steps that a member trains while it saves count as progress, so a slow save causes an
        // eviction only if other members wait for it.
        let checkpoints = self.checkpoints;
        let has_pending_directive = |id: WorkerId| pending.binary_search(&id).is_ok() || checkpoints.is_pending(id);
        // In a rendezvous, members wait for each other until all members have entered it. When the
        // first member is ready, all have.
        let is_rendezvous_incomplete = generation.is_some_and(|generation| generation.ready_members.is_empty());
        let waits_for_others = |member: &Member| match member.phase {
            v1::Phase::AllReduce => true,
            v1::Phase::Rendezvous => is_rendezvous_incomplete,
            _ => false,
        };
        self.members.reset_stall_timers(now, has_pending_directive);
        self.members.find_stall(now, stall_timeout, all_reduce_timeout, waits_for_others, has_pending_directive)
    }

    /// The ids, in order, of the generation's members with a pending directive. Saves are not
    /// counted.
    fn members_with_pending_directives(&self, generation: &Generation) -> Vec<WorkerId> {
        let has_pending_directive = |id: &WorkerId| match &self.generations.phase {
            RunPhase::Forming => !generation.ready_members.contains(id),
            RunPhase::Running if generation.step_tracker.position_of(*id) != Some(generation.granted) => true,
            RunPhase::Running => match &generation.pending_boundary {
                Some(PendingBoundary::Captions { pending }) => pending.get(id).is_some_and(|ranges| !ranges.is_empty()),
                Some(PendingBoundary::Advance { advanced, .. }) => !advanced.contains(id),
                Some(PendingBoundary::Scores) | None => false,
            },
            RunPhase::Waiting | RunPhase::Over { .. } => false,
        };
        let is_in_generation = |id: &WorkerId| {
            let state = self.members.get(*id).map(|member| member.state);
            state == Some(MemberState::InGeneration(generation.number))
        };
        let members = generation.members.iter().copied();
        members.filter(|id| is_in_generation(id) && has_pending_directive(id)).collect()
    }
}
