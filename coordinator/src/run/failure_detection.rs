//! Failure detection: removes members whose stream closes, that send no message, or that do not
//! release their generation. Also evicts and removes members for other parts of the state machine.

use proto::v1;
use serde_json::json;

use super::{
    Action, Phase, Run, SessionId, Time, WorkerId,
    membership::{MemberState, OverdueReason, release_timeout},
    record::EventKind,
};

impl Run {
    /// Handles [`super::Event::Closed`]: a worker's stream has closed.
    pub(super) fn handle_closed(&mut self, now: Time, session: SessionId) {
        let Some(worker_id) = self.members.worker_of(session) else { return };
        match self.phase {
            // The worker was told to leave.
            Phase::Over { .. } => self.remove_member(now, worker_id, EventKind::Left, "the run is over"),
            _ => self.remove_failed(now, worker_id, "its stream closed"),
        }
    }

    /// Handles [`super::Event::Tick`]: removes members that are overdue, and detects stalls.
    pub(super) fn check_timeouts(&mut self, now: Time) {
        let heartbeat_timeout = self.heartbeat_timeout();
        self.members.expire(now);
        for (worker_id, overdue) in self.members.overdue(now, heartbeat_timeout) {
            match overdue {
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

    /// Evicts a member: tells it to end with an error, and closes its stream.
    pub(super) fn evict(&mut self, now: Time, worker_id: WorkerId, reason: &str) {
        if let Some(member) = self.members.get(worker_id) {
            let session = member.session;
            self.send_leave(session, reason, false);
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
            // Nothing was trained yet: the next worker may bring other data.
            self.data = None;
        }
        if member.position.is_some() {
            self.holder_lost_at = now;
        }
        self.remove_from_save(now, worker_id, None);
        if matches!(member.state, MemberState::InGeneration(_)) {
            self.end_generation(now, reason, true);
        }
    }

    /// Tells a worker to exit; without an error if `orderly`.
    pub(super) fn send_leave(&mut self, session: SessionId, reason: &str, orderly: bool) {
        let leave = v1::directive::Directive::Leave(v1::Leave { reason: reason.to_owned(), orderly });
        self.send(session, self.last_generation, leave);
    }
}
