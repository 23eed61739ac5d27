//! Membership: the ids, sessions and reservations of a run's workers, and the time of each member's
//! last message.
//!
//! ```text
//!   Join            Attach                 Rendezvous             Idle
//!   ----> reserved ------> member (idle) ----------> in generation ----> member (idle)
//!            |                 |                          |
//!            v                 v                          v
//!      id free again: reservation not renewed; stream closed, no message, evicted, finished
//! ```
//!
//! A member never loses its id to another worker. A join for an id that is taken waits (`ABORTED`,
//! and the worker retries) until the holder is removed, or is a member that has sent a message
//! after the joining worker began to wait. In the second case the holder is alive, and the join is
//! refused permanently.
//!
//! A worker that has not attached yet holds only a [reservation](reservations). A client can create
//! a reservation with one request, so no join is refused permanently because of one. Workers that
//! wait are in a [queue](wait_queue), which decides who gets the next free id.

#[cfg(test)]
mod attack_tests;
mod join;
mod member;
mod reservations;
#[cfg(test)]
mod tests;
mod wait_queue;

use std::{collections::BTreeMap, time::Duration};

use proto::v1;

use super::{Refusal, RefusalKind, SessionId, Time, WorkerId};
pub use join::JoinSettings;
pub use member::{Machine, Member, MemberState, Rates};
use reservations::Reservations;
use wait_queue::WaitQueue;

/// How long a member may take to release a collective. It reports no progress meanwhile.
pub const RELEASE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximal length of a worker's host name, version, device, key or store address, in bytes. DNS
/// allows 253 for host names.
const MAX_NAME_BYTES: usize = 512;

/// All workers of the run: members, reservations and the queue.
#[derive(Debug, Default)]
pub struct Membership {
    reservations: Reservations,
    wait_queue: WaitQueue,
    members: BTreeMap<WorkerId, Member>,
    sessions: BTreeMap<SessionId, WorkerId>,
    /// The number of members that are not idle.
    busy_count: usize,
    /// The number of members that want to leave.
    leaving_count: usize,
    /// No id below this is free.
    min_free_id: WorkerId,
}

impl Membership {
    /// Turns the reservation of `token` into a member; returns its id. Fails if the token is
    /// unknown or the device is of another type.
    pub fn attach(
        &mut self,
        now: Time,
        session: SessionId,
        token: &str,
        store_address: String,
    ) -> Result<WorkerId, Refusal> {
        let Some(worker_id) = self.find_reservation(token) else {
            let reason =
                "unknown session token: join again to get a new one; a token works once and expires".to_owned();
            return Err(Refusal::new(RefusalKind::Unauthenticated, reason));
        };
        if store_address.is_empty() || store_address.len() > MAX_NAME_BYTES || store_address.contains(char::is_control)
        {
            let reason = format!("store_address must be host:port of at most {MAX_NAME_BYTES} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = self.reservations.remove(worker_id).map(|reservation| reservation.machine).unwrap_or_default();
        if let Err(refusal) = self.check_device_type(&machine, |_| true) {
            self.min_free_id = self.min_free_id.min(worker_id);
            return Err(refusal);
        }
        self.members.insert(worker_id, Member::new(now, session, machine, store_address));
        self.sessions.insert(session, worker_id);
        Ok(worker_id)
    }

    /// Removes a member, and frees its id.
    pub fn remove(&mut self, worker_id: WorkerId) -> Option<Member> {
        let member = self.members.remove(&worker_id)?;
        self.sessions.remove(&member.session);
        self.busy_count -= usize::from(member.state != MemberState::Idle);
        self.leaving_count -= usize::from(member.leave_reason.is_some());
        self.min_free_id = self.min_free_id.min(worker_id);
        Some(member)
    }

    /// Sets the state of a member.
    pub fn set_state(&mut self, worker_id: WorkerId, state: MemberState) {
        let Some(member) = self.members.get_mut(&worker_id) else { return };
        let before = std::mem::replace(&mut member.state, state);
        self.busy_count += usize::from(state != MemberState::Idle);
        self.busy_count -= usize::from(before != MemberState::Idle);
    }

    /// Marks a member as leaving.
    pub fn mark_leaving(&mut self, worker_id: WorkerId, reason: String) {
        let Some(member) = self.members.get_mut(&worker_id) else { return };
        self.leaving_count += usize::from(member.leave_reason.is_none());
        member.leave_reason = Some(reason);
    }

    /// Whether all members are idle: none is in a generation, or still releasing one.
    #[must_use]
    pub fn all_idle(&self) -> bool {
        self.busy_count == 0
    }

    /// The number of members that do not want to leave.
    #[must_use]
    pub fn staying_count(&self) -> usize {
        self.members.len() - self.leaving_count
    }

    /// Ends reservations that were not renewed in time, and removes workers from the queue that do
    /// not retry any more.
    pub fn expire(&mut self, now: Time) {
        self.wait_queue.expire(now);
        if let Some(worker_id) = self.reservations.expire(now) {
            self.min_free_id = self.min_free_id.min(worker_id);
        }
    }

    /// The id of the member with this stream.
    #[must_use]
    pub fn worker_of(&self, session: SessionId) -> Option<WorkerId> {
        self.sessions.get(&session).copied()
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

    /// Members that sent no message for `heartbeat_timeout`, and members that do not release their
    /// generation.
    #[must_use]
    pub fn overdue(&self, now: Time, heartbeat_timeout: Duration) -> Vec<(WorkerId, OverdueReason)> {
        let release_timeout = release_timeout(heartbeat_timeout);
        let overdue = |(worker_id, member): (&WorkerId, &Member)| match member.state {
            _ if now.saturating_sub(member.last_message_at) >= heartbeat_timeout => {
                Some((*worker_id, OverdueReason::NoMessage))
            }
            MemberState::Releasing { generation, since } if now.saturating_sub(since) >= release_timeout => {
                Some((*worker_id, OverdueReason::NotReleased(generation)))
            }
            _ => None,
        };
        self.members.iter().filter_map(overdue).collect()
    }

    /// Resets the stall timer of members without a pending directive.
    pub fn reset_stall_timers(&mut self, now: Time, has_pending_directive: impl Fn(WorkerId) -> bool) {
        for (_, member) in self.members.iter_mut().filter(|(worker_id, _)| !has_pending_directive(**worker_id)) {
            member.last_progress_at = now;
        }
    }

    /// Finds the members that have made no progress for `stall_timeout` while other members wait
    /// for them. If all members wait for each other, the timeout is `all_reduce_timeout` for those
    /// in the all-reduce. A long computation is no stall while no other member waits for it.
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
        let (busy, free): (Vec<_>, Vec<_>) = self.iter().partition(|(worker_id, _)| has_pending_directive(*worker_id));
        let (waiting, working): (Vec<_>, Vec<_>) = busy.into_iter().partition(|(_, member)| waits_for_others(member));
        let stalled = working.iter().filter(|(_, member)| has_stalled_for(member, stall_timeout));
        let stalled: Vec<WorkerId> = stalled.map(|(worker_id, _)| *worker_id).collect();
        if !stalled.is_empty() {
            let others_wait = !waiting.is_empty() || !free.is_empty();
            return others_wait.then_some(Stall::Members(stalled));
        }
        let is_stuck = |member: &Member| {
            let is_in_all_reduce = member.phase == v1::Phase::AllReduce;
            has_stalled_for(member, if is_in_all_reduce { all_reduce_timeout } else { stall_timeout })
        };
        let all_stuck = !waiting.is_empty() && working.is_empty() && waiting.iter().all(|(_, member)| is_stuck(member));
        all_stuck.then_some(Stall::AllMembers)
    }
}

/// How long a member may take to release a generation.
#[must_use]
pub fn release_timeout(heartbeat_timeout: Duration) -> Duration {
    RELEASE_TIMEOUT.max(heartbeat_timeout)
}

/// A generation without progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stall {
    /// These members have made no progress for too long, and others wait for them.
    Members(Vec<WorkerId>),
    /// All members wait for each other.
    AllMembers,
}

/// Why a member is overdue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverdueReason {
    /// It sent no message for `heartbeat_timeout`.
    NoMessage,
    /// It does not release this generation.
    NotReleased(u64),
}
