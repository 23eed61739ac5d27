//! Membership: the ids, sessions and reservations of a run's workers, and the time of each member's
//! last message.
//!
//! ```text
//!      Join               Attach               Rendezvous                Idle
//!      request            message              directive                 message
//!     ---------> reserved ---------> idle member -----------> in generation -------> idle member
//!                   |                    |                          |
//!       not renewed |                    | session closed,          | session closed,
//!           in time |                    | heartbeat timeout,       | heartbeat timeout,
//!                   |                    | evicted or left          | evicted or finished
//!                   v                    v                          v
//!                 the id is unassigned: another worker can get it
//! ```
//!
//! A *session* is the bidirectional stream of a worker's `Session` call. A worker that attaches a
//! session becomes a *member*, and stays one until the session ends.
//!
//! To *release a generation*, a member destroys the generation's collective (its process group) and
//! then reports `Idle`. It takes part in the next rendezvous only after that.
//!
//! A member never loses its id to another worker. If a worker requests an id that another worker
//! has, the coordinator answers `ABORTED`, and the worker retries. This ends in one of two ways:
//! the other worker is removed and the id is assigned to the waiting worker; or the other worker is
//! a member and sends a message after the wait began. The second case proves that the member is
//! alive, so the request is refused permanently.
//!
//! A worker that has not attached yet has only a [reservation](reservations) of its id. A
//! reservation does not prove that a live worker has the id: any client that may join can make one
//! with a single request. If a reservation could cause a permanent refusal, a faulty client could
//! keep all other workers out of the run. Therefore the coordinator answers requests for a reserved
//! id with `ABORTED`, never with a permanent refusal. Workers that wait for an id are in a
//! [queue](wait_queue), which decides which of them gets the next unassigned id.

mod join;
#[cfg(test)]
mod join_flood_tests;
mod member;
mod reservations;
#[cfg(test)]
mod tests;
mod wait_queue;

use std::{collections::BTreeMap, time::Duration};

use proto::v1;

use super::{Refusal, RefusalKind, SessionId, Time, WorkerId};
pub use join::JoinSettings;
pub use member::{Machine, Member, MemberState, MemberThroughput};
use reservations::Reservations;
use wait_queue::WaitQueue;

/// Lower bound of the [`release_timeout`]. A member reports no progress while it destroys its
/// collective.
const MIN_RELEASE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximal length of each text in the requests of a worker that joins, in bytes: host name,
/// software version, device, idempotency key, and address of its TCPStore. DNS allows 253 bytes
/// for host names.
const MAX_JOIN_TEXT_BYTES: usize = 512;

/// All workers of the run: members, workers with a reservation, and workers that wait for an id.
#[derive(Debug, Default)]
pub struct Membership {
    reservations: Reservations,
    wait_queue: WaitQueue,
    members: BTreeMap<WorkerId, Member>,
    /// The id of the member with each session.
    worker_ids: BTreeMap<SessionId, WorkerId>,
    /// The number of members in [`MemberState::InGeneration`] or [`MemberState::Releasing`].
    non_idle_count: usize,
    /// The number of members that want to leave.
    leaving_count: usize,
    /// All ids below this one are reserved or belong to members. The search for an unassigned id
    /// starts here.
    min_unassigned_id: WorkerId,
}

impl Membership {
    /// Turns the worker with the reservation of a session token into a member; returns its id.
    ///
    /// # Errors
    /// The token is unknown, the address is invalid, or the device is of another type than those of
    /// the members. In the last case the reservation ends.
    pub fn attach(
        &mut self,
        now: Time,
        session: SessionId,
        session_token: &str,
        tcp_store_address: String,
    ) -> Result<WorkerId, Refusal> {
        let Some(worker_id) = self.find_reservation(session_token) else {
            let reason =
                "unknown session token: join again to get a new one; a token works once and expires".to_owned();
            return Err(Refusal::new(RefusalKind::Unauthenticated, reason));
        };
        let is_valid_length = (1..=MAX_JOIN_TEXT_BYTES).contains(&tcp_store_address.len());
        if !is_valid_length || tcp_store_address.contains(char::is_control) {
            let reason = format!("store_address must be host:port of at most {MAX_JOIN_TEXT_BYTES} bytes");
            return Err(Refusal::new(RefusalKind::InvalidArgument, reason));
        }
        let machine = self.reservations.remove(worker_id).map(|reservation| reservation.machine).unwrap_or_default();
        let counts_as_alive = |_: &join::IdHolder<'_>| true;
        if let Err(refusal) = self.check_device_type(&machine, counts_as_alive) {
            self.min_unassigned_id = self.min_unassigned_id.min(worker_id);
            return Err(refusal);
        }
        self.members.insert(worker_id, Member::new(now, session, machine, tcp_store_address));
        self.worker_ids.insert(session, worker_id);
        Ok(worker_id)
    }

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
