//! The members of a run, and what they are overdue with.

use std::{collections::BTreeMap, time::Duration};

use proto::v1;

use super::{
    member::{Member, MemberState},
    reservations::Reservations,
    wait_queue::WaitQueue,
};
use crate::types::{SessionId, Time, WorkerId};

/// Lower bound of the [`release_timeout`]. A member reports no progress while it destroys its
/// collective.
const MIN_RELEASE_TIMEOUT: Duration = Duration::from_secs(60);

/// All workers of the run: members, workers with a reservation, and workers that wait for an id.
#[derive(Debug, Default)]
pub struct Membership {
    pub(super) reservations: Reservations,
    pub(super) wait_queue: WaitQueue,
    pub(super) members: BTreeMap<WorkerId, Member>,
    /// The id of the member with each session.
    pub(super) worker_ids: BTreeMap<SessionId, WorkerId>,
    /// The number of members in [`MemberState::InGeneration`] or [`MemberState::Releasing`].
    non_idle_count: usize,
    /// The number of members that want to leave.
    leaving_count: usize,
    /// All ids below this one are reserved or belong to members. The search for an unassigned id
    /// starts here.
    pub(super) min_unassigned_id: WorkerId,
}

impl Membership {
    /// Removes a member: another worker can get its id.
    pub fn remove(&mut self, worker_id: WorkerId) -> Option<Member> {
        let member = self.members.remove(&worker_id)?;
        self.worker_ids.remove(&member.session);
        self.non_idle_count -= usize::from(member.state != MemberState::Idle);
        self.leaving_count -= usize::from(member.leave_reason.is_some());
        self.min_unassigned_id = self.min_unassigned_id.min(worker_id);
        Some(member)
    }

    /// Sets the state of a member with respect to generations.
    pub fn set_state(&mut self, worker_id: WorkerId, state: MemberState) {
        let Some(member) = self.members.get_mut(&worker_id) else { return };
        let previous_state = std::mem::replace(&mut member.state, state);
        self.non_idle_count += usize::from(state != MemberState::Idle);
        self.non_idle_count -= usize::from(previous_state != MemberState::Idle);
    }

    /// Marks a member as leaving.
    pub fn mark_leaving(&mut self, worker_id: WorkerId, reason: String) {
        let Some(member) = self.members.get_mut(&worker_id) else { return };
        self.leaving_count += usize::from(member.leave_reason.is_none());
        member.leave_reason = Some(reason);
    }

    /// Whether all members are idle: none is in a generation, and none still releases one.
    #[must_use]
    pub fn are_all_idle(&self) -> bool {
        self.non_idle_count == 0
    }

    /// The number of members that do not want to leave.
    #[must_use]
    pub fn staying_count(&self) -> usize {
        self.members.len() - self.leaving_count
    }

    /// Ends reservations that were not renewed in time, and removes workers that do not retry any
    /// more from the queue.
    pub fn remove_expired(&mut self, now: Time) {
        self.wait_queue.remove_expired(now);
        if let Some(worker_id) = self.reservations.remove_expired(now) {
            self.min_unassigned_id = self.min_unassigned_id.min(worker_id);
        }
    }

    /// The id of the member with this session.
    #[must_use]
    pub fn worker_id_of(&self, session: SessionId) -> Option<WorkerId> {
        self.worker_ids.get(&session).copied()
    }

    /// The member with this id.
    #[must_use]
    pub fn get(&self, worker_id: WorkerId) -> Option<&Member> {
        self.members.get(&worker_id)
    }

    /// The member with this id.
    pub fn get_mut(&mut self, worker_id: WorkerId) -> Option<&mut Member> {
        self.members.get_mut(&worker_id)
    }

    /// All members, by id.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, &Member)> {
        self.members.iter().map(|(worker_id, member)| (*worker_id, member))
    }

    /// The number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether a member is isolated: other members cannot reach it, and it is the sole holder of
    /// the furthest state.
    #[must_use]
    pub fn is_isolated(&self, worker_id: WorkerId) -> bool {
        self.members.get(&worker_id).is_some_and(|member| member.is_isolated)
    }

    /// Records a heartbeat of a member.
    pub fn record_heartbeat(&mut self, now: Time, worker_id: WorkerId, heartbeat: &v1::Heartbeat) {
        if let Some(member) = self.members.get_mut(&worker_id) {
            member.record_heartbeat(now, heartbeat.phase(), heartbeat.position);
        }
    }

    /// Records progress that a message other than a heartbeat shows.
    pub fn record_progress(&mut self, now: Time, worker_id: WorkerId) {
        if let Some(member) = self.members.get_mut(&worker_id) {
            member.last_progress_at = now;
        }
    }

    /// Finds members that sent no message for `heartbeat_timeout`, and members that did not release
    /// their generation within the [`release_timeout`].
    #[must_use]
    pub fn find_overdue(&self, now: Time, heartbeat_timeout: Duration) -> Vec<(WorkerId, OverdueReason)> {
        let release_timeout = release_timeout(heartbeat_timeout);
        let overdue_reason = |(worker_id, member): (&WorkerId, &Member)| match member.state {
            _ if now.saturating_sub(member.last_message_at) >= heartbeat_timeout => {
                Some((*worker_id, OverdueReason::NoMessage))
            }
            MemberState::Releasing { generation, since } if now.saturating_sub(since) >= release_timeout => {
                Some((*worker_id, OverdueReason::NotReleased(generation)))
            }
            _ => None,
        };
        self.members.iter().filter_map(overdue_reason).collect()
    }

    /// Restarts the stall timer of members without a pending directive: they have nothing to do, so
    /// their lack of progress is not a stall.
    pub fn reset_stall_timers(&mut self, now: Time, has_pending_directive: impl Fn(WorkerId) -> bool) {
        for (_, member) in self.members.iter_mut().filter(|(worker_id, _)| !has_pending_directive(**worker_id)) {
            member.last_progress_at = now;
        }
    }

    /// Finds the members that have made no progress for `stall_timeout` while other members wait
    /// for them. If all members wait for each other, the timeout is `all_reduce_timeout` for those
    /// in the all-reduce. A long computation is not a stall while no other member waits for it.
    #[must_use]
    pub fn find_stall(
        &self,
        now: Time,
        stall_timeout: Duration,
        all_reduce_timeout: Duration,
        waits_for_others: impl Fn(&Member) -> bool,
        has_pending_directive: impl Fn(WorkerId) -> bool,
    ) -> Option<Stall> {
        let has_stalled_for = |member: &Member, timeout| now.saturating_sub(member.last_progress_at) >= timeout;
        let (with_directive, without_directive): (Vec<_>, Vec<_>) =
            self.iter().partition(|(worker_id, _)| has_pending_directive(*worker_id));
        let (waiting, working): (Vec<_>, Vec<_>) =
            with_directive.into_iter().partition(|(_, member)| waits_for_others(member));
        let stalled = working.iter().filter(|(_, member)| has_stalled_for(member, stall_timeout));
        let stalled: Vec<WorkerId> = stalled.map(|(worker_id, _)| *worker_id).collect();
        if !stalled.is_empty() {
            let others_wait = !waiting.is_empty() || !without_directive.is_empty();
            return others_wait.then_some(Stall::Members(stalled));
        }
        let has_timed_out = |member: &Member| {
            let is_in_all_reduce = member.phase == v1::Phase::AllReduce;
            has_stalled_for(member, if is_in_all_reduce { all_reduce_timeout } else { stall_timeout })
        };
        let all_wait = !waiting.is_empty() && working.is_empty();
        let all_timed_out = all_wait && waiting.iter().all(|(_, member)| has_timed_out(member));
        all_timed_out.then_some(Stall::AllMembers)
    }
}

/// How long a member may take to release a generation: to destroy its collective and report `Idle`.
#[must_use]
pub fn release_timeout(heartbeat_timeout: Duration) -> Duration {
    MIN_RELEASE_TIMEOUT.max(heartbeat_timeout)
}

/// A lack of progress in a generation, for longer than the timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// These members have made no progress for too long, and others wait for them.
    Members(Vec<WorkerId>),
    /// All members wait for each other.
    AllMembers,
}

/// Why [`Membership::find_overdue`] names a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverdueReason {
    /// It sent no message for `heartbeat_timeout`.
    NoMessage,
    /// It did not release this generation in time.
    NotReleased(u64),
}
