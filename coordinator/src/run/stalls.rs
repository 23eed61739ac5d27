//! Stall detection: evicts members that send heartbeats, but do not do what the other members wait
//! for.

use std::time::Duration;

use proto::v1;

use super::{
    Outcome, Phase, Run, Time,
    membership::{Member, MemberState, Stall},
    progress::PendingBoundary,
};

/// An all-reduce that all members have entered counts as hung after this multiple of `heartbeat_timeout`
/// (or after `stall_timeout`, if that is shorter).
const HUNG: u32 = 3;

impl Run {
    /// Evicts the members that the others have waited for longer than `stall_timeout`. Ends the
    /// generation if all members wait for each other.
    pub(super) fn unstall(&mut self, now: Time) {
        let stall_timeout = Duration::try_from_secs_f64(self.file.control.stall_timeout).unwrap_or(Duration::MAX);
        let debtors = self.debtors();
        // Progress in training counts, too: a member whose save delays no other member is not
        // evicted for it.
        let saves = |rank: u32| self.saving.as_ref().is_some_and(|saving| saving.awaits(rank));
        let owes = |rank: u32| debtors.binary_search(&rank).is_ok() || saves(rank);
        self.members.excuse(now, owes);
        // No member makes progress in a rendezvous before all have arrived.
        let meets = self.generation.as_ref().is_some_and(|generation| generation.ready.is_empty());
        let waits_for_others = |member: &Member| match member.phase {
            v1::Phase::AllReduce => true,
            v1::Phase::Rendezvous => meets,
            _ => false,
        };
        let seconds = stall_timeout.as_secs_f64();
        let hung_after = stall_timeout.min(HUNG * self.heartbeat_timeout());
        match self.members.stalled(now, stall_timeout, hung_after, waits_for_others, owes) {
            Some(Stall::Of(ranks)) => {
                for rank in ranks {
                    self.evict(now, rank, &format!("it did not move for {seconds} s while others waited for it"));
                }
            }
            Some(Stall::OfAll) => {
                let seconds = hung_after.as_secs_f64();
                let reason =
                    format!("all ranks have waited for each other for {seconds} s (see control.heartbeat_timeout)");
                let too_many = self.failures.count(self.progress, self.last_generation, &reason, false);
                self.end_generation(now, &reason, true);
                if too_many {
                    self.conclude(now, Outcome::Failed(format!("generations keep failing without progress: {reason}")));
                }
            }
            None => {}
        }
    }

    /// Records progress of a member that heartbeats do not report.
    pub(super) fn moves(&mut self, now: Time, rank: u32) {
        if let Some(member) = self.members.get_mut(rank) {
            member.moved = now;
        }
    }

    /// The ids, in order, of the generation's members with an unfinished directive. Saves are not
    /// counted.
    fn debtors(&self) -> Vec<u32> {
        let Some(generation) = &self.generation else { return Vec::new() };
        let owes = |rank: &u32| match &self.phase {
            Phase::Forming => !generation.ready.contains(rank),
            Phase::Running if generation.step_tracker.of(*rank) != Some(generation.granted) => true,
            Phase::Running => match &generation.awaiting {
                Some(PendingBoundary::Captions { asked }) => asked.get(rank).is_some_and(|ranges| !ranges.is_empty()),
                Some(PendingBoundary::Advance { done, .. }) => !done.contains(rank),
                Some(PendingBoundary::Scores) | None => false,
            },
            Phase::Waiting | Phase::Over { .. } => false,
        };
        let is_in = |rank: &u32| {
            self.members.get(*rank).is_some_and(|member| member.standing == MemberState::In(generation.number))
        };
        generation.members.iter().copied().filter(|rank| is_in(rank) && owes(rank)).collect()
    }
}
