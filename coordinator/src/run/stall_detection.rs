//! Stall detection: evicts members that send heartbeats, but do not finish the work that other
//! members wait for.

use std::time::Duration;

use proto::v1;

use super::{
    Outcome, Run, RunPhase, Time, WorkerId,
    membership::{Member, MemberState, Stall},
    progress::PendingBoundary,
};

/// An all-reduce that all members have entered times out after this multiple of
/// `heartbeat_timeout`, or after `stall_timeout` if that is shorter.
const ALL_REDUCE_TIMEOUT_FACTOR: u32 = 3;

impl Run {
    /// Evicts the members that the others have waited for longer than `stall_timeout`. Ends the
    /// generation if all members wait for each other.
    pub(super) fn check_stalls(&mut self, now: Time) {
        let stall_timeout = Duration::try_from_secs_f64(self.file.control.stall_timeout).unwrap_or(Duration::MAX);
        let pending = self.members_with_pending_directives();
        // Steps that a member trains while it saves count as progress, so a slow save causes an
        // eviction only if other members wait for it.
        let is_saving = |id: WorkerId| self.saving.as_ref().is_some_and(|saving| saving.is_pending(id));
        let has_pending_directive = |id: WorkerId| pending.binary_search(&id).is_ok() || is_saving(id);
        self.members.reset_stall_timers(now, has_pending_directive);
        // In a rendezvous, members wait for each other until all members have entered it. When the
        // first member is ready, all have.
        let is_rendezvous_incomplete =
            self.generation.as_ref().is_some_and(|generation| generation.ready_members.is_empty());
        let waits_for_others = |member: &Member| match member.phase {
            v1::Phase::AllReduce => true,
            v1::Phase::Rendezvous => is_rendezvous_incomplete,
            _ => false,
        };
        let all_reduce_timeout = stall_timeout.min(ALL_REDUCE_TIMEOUT_FACTOR * self.heartbeat_timeout());
        let members = &self.members;
        match members.find_stall(now, stall_timeout, all_reduce_timeout, waits_for_others, has_pending_directive) {
            Some(Stall::Members(worker_ids)) => {
                let seconds = stall_timeout.as_secs_f64();
                let reason =
                    format!("it made no progress within stall_timeout ({seconds} s) while others waited for it");
                for worker_id in worker_ids {
                    self.evict(now, worker_id, &reason);
                }
            }
            Some(Stall::AllMembers) => {
                let seconds = all_reduce_timeout.as_secs_f64();
                let reason =
                    format!("all ranks have waited for each other for {seconds} s (see control.heartbeat_timeout)");
                let generation = self.last_generation;
                let is_fatal = false;
                let must_fail = self.failure_counter.record(self.progress_count, generation, &reason, is_fatal);
                let is_failure = true;
                self.end_generation(now, &reason, is_failure);
                if must_fail {
                    let reason = format!("generations keep failing without progress: {reason}");
                    self.end_run(now, Outcome::Failed(reason));
                }
            }
            None => {}
        }
    }

    /// Records progress that a message other than a heartbeat shows.
    pub(super) fn record_progress(&mut self, now: Time, worker_id: WorkerId) {
        if let Some(member) = self.members.get_mut(worker_id) {
            member.last_progress_at = now;
        }
    }

    /// The ids, in order, of the generation's members with a pending directive. Saves are not
    /// counted.
    fn members_with_pending_directives(&self) -> Vec<WorkerId> {
        let Some(generation) = &self.generation else { return Vec::new() };
        let has_pending_directive = |id: &WorkerId| match &self.phase {
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
