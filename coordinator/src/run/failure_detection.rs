//! Failure detection: removes members whose session closes, that send no message, or that do not
//! release their generation. Also evicts and removes members for the other modules of the state
//! machine.

use proto::v1;
use serde_json::json;

use super::{
    Action, Run, RunPhase, SessionId, Time, WorkerId,
    membership::{MemberState, OverdueReason, release_timeout},
    record::EventKind,
};

impl Run {
    /// Handles [`super::Event::Closed`]: a worker's session has closed.
    pub(super) fn handle_closed(&mut self, now: Time, session: SessionId) {
        let Some(worker_id) = self.members.worker_id_of(session) else { return };
        match self.phase {
            // The coordinator has sent the worker a Finish or Leave directive.
            RunPhase::Over { .. } => self.remove_member(now, worker_id, EventKind::Left, "the run is over"),
            _ => self.remove_failed(now, worker_id, "its stream closed"),
        }
    }

    /// Handles [`super::Event::Tick`]: removes members that are overdue and reservations that have
    /// expired, and detects stalls.
    pub(super) fn check_timeouts(&mut self, now: Time) {
        let heartbeat_timeout = self.heartbeat_timeout();
        self.members.remove_expired(now);
        for (worker_id, overdue_reason) in self.members.find_overdue(now, heartbeat_timeout) {
            match overdue_reason {
                OverdueReason::NoMessage => {
                    let seconds = heartbeat_timeout.as_secs_f64();
                    let reason = format!("it sent no message within heartbeat_timeout ({seconds} s)");
                    let session = self.members.get(worker_id).map(|member| member.session);
                    self.remove_failed(now, worker_id, &reason);
                    self.actions.extend(session.map(|session| Action::Close { session, refusal: None }));
                }
                OverdueReason::NotReleased(generation) => {
                    let seconds = release_timeout(heartbeat_timeout).as_secs_f64();
                    let reason = format!("it did not release generation {generation} within {seconds} s");
                    self.evict(now, worker_id, &reason);
                }
            }
        }
        self.check_stalls(now);
    }

    /// Removes a member that failed.
    fn remove_failed(&mut self, now: Time, worker_id: WorkerId, reason: &str) {
        let reason = format!("worker {worker_id} failed: {reason}");
        self.remove_member(now, worker_id, EventKind::Lost, &reason);
    }

    /// Evicts a member: orders it to exit with an error, and closes its session.
    pub(super) fn evict(&mut self, now: Time, worker_id: WorkerId, reason: &str) {
        if let Some(member) = self.members.get(worker_id) {
            let session = member.session;
            let is_orderly = false;
            self.send_leave(session, reason, is_orderly);
            self.actions.push(Action::Close { session, refusal: None });
        }
        let reason = format!("worker {worker_id} was evicted: {reason}");
        self.remove_member(now, worker_id, EventKind::Lost, &reason);
    }

    /// Removes a member, records the event, and ends the generation that it was in.
    pub(super) fn remove_member(&mut self, now: Time, worker_id: WorkerId, kind: EventKind, reason: &str) {
        let Some(member) = self.members.remove(worker_id) else { return };
        self.record_event(kind, json!({ "rank": worker_id, "host": member.machine.host, "reason": reason }));
        if self.last_generation == 0 && self.members.is_empty() {
            // No step was trained yet, so the next worker may have other data.
            self.data = None;
        }
        if member.position.is_some() {
            self.state_holder_removed_at = now;
        }
        let unfinished_save = None;
        self.remove_from_save(now, worker_id, unfinished_save);
        if matches!(member.state, MemberState::InGeneration(_)) {
            let is_failure = true;
            self.end_generation(now, reason, is_failure);
        }
    }

    /// Orders a worker to exit; without an error if `is_orderly`.
    pub(super) fn send_leave(&mut self, session: SessionId, reason: &str, is_orderly: bool) {
        let leave = v1::directive::Directive::Leave(v1::Leave { reason: reason.to_owned(), orderly: is_orderly });
        self.send(session, self.last_generation, leave);
    }
}
