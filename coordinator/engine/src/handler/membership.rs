//! Removal of members: by eviction, by failure, and by leaving.

use proto::v1;
use serde_json::json;

use crate::{
    data::RunData,
    event_kind::EventKind,
    membership::{Member, MemberState, Membership},
    output::{Effect, Output},
    state::{State, generations::Generations},
    types::{SessionId, Time, WorkerId},
    violation::one_line,
};

/// Removes members, and marks members that want to leave.
pub struct MembershipHandler<'a> {
    members: &'a mut Membership,
    generations: &'a mut Generations,
    data: &'a mut RunData,
    output: &'a mut Output,
}

impl<'a> MembershipHandler<'a> {
    pub fn new(state: &'a mut State, output: &'a mut Output) -> Self {
        let State { members, generations, data, .. } = state;
        Self { members, generations, data, output }
    }

    /// Handles a session that has closed: removes its member.
    pub fn session_closed(&mut self, now: Time, session: SessionId) {
        let Some(worker_id) = self.members.worker_id_of(session) else { return };
        match self.generations.is_over() {
            // The coordinator has sent the worker a Finish or Leave directive.
            true => self.remove(now, worker_id, EventKind::Left, "the run is over"),
            false => self.remove_failed(now, worker_id, "its stream closed"),
        }
    }

    /// Handles `Finished`: a member has executed `Finish`.
    pub fn finished(&mut self, now: Time, worker_id: WorkerId) {
        self.close_session(worker_id);
        self.remove(now, worker_id, EventKind::Left, "finished");
    }

    /// Handles `Leaving`: a member announces that it wants to leave.
    pub fn leaving(&mut self, worker_id: WorkerId, leaving: &v1::Leaving) {
        self.request_leave(worker_id, one_line(&leaving.reason));
    }

    /// Marks a member as leaving. It is released when the run does not depend on it any more.
    pub fn request_leave(&mut self, worker_id: WorkerId, reason: String) {
        if self.members.get(worker_id).is_some_and(|member| member.leave_reason.is_none()) {
            self.output.record_event(EventKind::Leaving, json!({ "rank": worker_id, "reason": reason }));
            self.members.mark_leaving(worker_id, reason);
        }
    }

    /// Removes a member that failed.
    pub fn remove_failed(&mut self, now: Time, worker_id: WorkerId, reason: &str) {
        let reason = format!("worker {worker_id} failed: {reason}");
        self.remove(now, worker_id, EventKind::Lost, &reason);
    }

    /// Evicts a member: orders it to exit with an error, and closes its session.
    pub fn evict(&mut self, now: Time, worker_id: WorkerId, reason: &str) {
        if let Some(Member { session, .. }) = self.members.get(worker_id) {
            self.output.send_leave(*session, self.generations.last_number, reason, false);
            self.output.close(*session);
        }
        let reason = format!("worker {worker_id} was evicted: {reason}");
        self.remove(now, worker_id, EventKind::Lost, &reason);
    }

    /// Closes the session of a member.
    pub fn close_session(&mut self, worker_id: WorkerId) {
        if let Some(member) = self.members.get(worker_id) {
            self.output.close(member.session);
        }
    }

    /// Removes a member, and records the event.
    pub fn remove(&mut self, now: Time, worker_id: WorkerId, kind: EventKind, reason: &str) {
        let Some(member) = self.members.remove(worker_id) else { return };
        let detail = json!({ "rank": worker_id, "host": member.machine.host, "reason": reason });
        self.output.record_event(kind, detail);
        if self.generations.last_number == 0 && self.members.is_empty() {
            // No step was trained yet, so the next worker may have other data.
            self.data.description = None;
        }
        if member.position.is_some() {
            self.generations.state_holder_removed_at = now;
        }
        let was_in_generation = matches!(member.state, MemberState::InGeneration(_));
        let reason = reason.to_owned();
        self.output.add_effect(Effect::MemberRemoved { worker_id, was_in_generation, reason });
    }
}
