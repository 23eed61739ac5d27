//! Membership changes: selects the members of the next generation, decides when the running
//! generation halts for a member that joins or leaves, and when a leaving member is released.
//!
//! A generation that halts finishes the step in flight: its members agree on the halt in the
//! all-reduce of that step. Therefore no applied step is lost when a worker joins or leaves in
//! order. A leaving member is released only when the run does not depend on it any more. The run
//! depends on a leaving member if no staying member and no checkpoint holds the furthest training
//! state that it holds, or if it writes a checkpoint.

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Run, Time, WorkerId,
    generation::{Generation, StartPoint},
    membership::{Member, MemberState},
    one_line,
    plan::Position,
    progress::PendingBoundary,
    record::{EventKind, StateSource},
};

/// Upper bound of a worker's delay between two attempts to join.
const MAX_REJOIN_BACKOFF: Time = Time::from_secs(5);

impl Run {
    /// Handles `Leaving`: a member announces that it wants to leave.
    pub(super) fn handle_leaving(&mut self, worker_id: WorkerId, leaving: &v1::Leaving) {
        self.request_leave(worker_id, one_line(&leaving.reason));
    }

    /// Marks a member as leaving. [`Self::release_leaving_members`] releases it when the run does
    /// not depend on it any more.
    pub(super) fn request_leave(&mut self, worker_id: WorkerId, reason: String) {
        if self.members.get(worker_id).is_some_and(|member| member.leave_reason.is_none()) {
            self.record_event(EventKind::Leaving, json!({ "rank": worker_id, "reason": reason }));
            self.members.mark_leaving(worker_id, reason);
        }
    }

    /// The members of the next generation: the members that do not leave, and the [holder of a
    /// state that would be lost](Self::holder_about_to_leave). Only that holder if the coordinator
    /// stops, or if the holder is isolated. None if there is no such holder, and fewer than
    /// `workers.min` members stay or the coordinator stops.
    pub(super) fn select_members(&self) -> Option<Vec<WorkerId>> {
        let leaving_holder = self.holder_about_to_leave();
        if self.stop_requested {
            // This generation only saves the state of that member.
            return leaving_holder.map(|worker_id| vec![worker_id]);
        }
        if self.members.staying_count() < self.file.workers.min as usize && leaving_holder.is_none() {
            return None;
        }
        if let Some(worker_id) = leaving_holder
            && self.is_isolated(worker_id)
        {
            return Some(vec![worker_id]);
        }
        let is_selected =
            |(id, member): &(WorkerId, &Member)| member.leave_reason.is_none() || Some(*id) == leaving_holder;
        Some(self.members.iter().filter(is_selected).map(|(worker_id, _)| worker_id).collect())
    }

    /// Whether a generation that starts from `start` would give up committed steps that a removed
    /// member may still hold. The coordinator then waits for that worker to join again. It waits
    /// for as long as a worker takes to notice that its connection is lost (`heartbeat_timeout`)
    /// and to retry ([`MAX_REJOIN_BACKOFF`]).
    pub(super) fn must_wait_for_removed_holder(&self, now: Time, start: Position) -> bool {
        let gives_up_steps =
            start < self.committed && self.branch_points.is_current(self.committed, self.last_generation);
        let deadline =
            self.state_holder_removed_at.saturating_add(self.heartbeat_timeout()).saturating_add(MAX_REJOIN_BACKOFF);
        gives_up_steps && now < deadline
    }

    /// A member that holds the furthest state, if that state would be lost: all holders leave, or
    /// the coordinator stops. None if the state is saved.
    pub(super) fn holder_about_to_leave(&self) -> Option<WorkerId> {
        if self.members.staying_count() == self.members.len() && !self.stop_requested {
            return None;
        }
        let StartPoint { start, source: StateSource::Member(worker_id) } = self.select_start() else { return None };
        let leaves =
            self.stop_requested || self.members.get(worker_id).is_some_and(|member| member.leave_reason.is_some());
        (leaves && !self.is_saved(start)).then_some(worker_id)
    }

    /// Whether a state can be restored without a member: from the seed or from a checkpoint.
    pub(super) fn is_saved(&self, position: Position) -> bool {
        position == Position::default() || self.checkpoints.contains_key(&position)
    }

    /// Whether a member is isolated: other members cannot reach it, and it is the sole holder of
    /// the furthest state.
    pub(super) fn is_isolated(&self, worker_id: WorkerId) -> bool {
        self.members.get(worker_id).is_some_and(|member| member.is_isolated)
    }

    /// Whether a generation exists only to save its state: all its members leave afterwards, and no
    /// other member takes over the state.
    pub(super) fn is_save_only(&self, generation: &Generation) -> bool {
        self.members.staying_count() == 0 || generation.members.iter().all(|id| self.is_isolated(*id))
    }

    /// Releases the leaving members that are idle and that the run does not depend on: orders them
    /// to exit, and removes them.
    pub(super) fn release_leaving_members(&mut self, now: Time) {
        if self.members.staying_count() == self.members.len() {
            return;
        }
        let needed_ids = [self.holder_about_to_leave(), self.saving.as_ref().map(|saving| saving.writer)];
        let can_leave = |(id, member): &(WorkerId, &Member)| {
            member.leave_reason.is_some() && member.state == MemberState::Idle && !needed_ids.contains(&Some(*id))
        };
        let leaving = self.members.iter().filter(can_leave);
        let leaving: Vec<_> = leaving.map(|(id, member)| (id, member.session, member.leave_reason.clone())).collect();
        for (worker_id, session, reason) in leaving {
            let reason = reason.unwrap_or_default();
            self.send_leave(session, &reason, !self.is_isolated(worker_id));
            self.actions.push(Action::Close { session, refusal: None });
            self.remove_member(now, worker_id, EventKind::Left, &reason);
        }
    }

    /// Why the running generation has to halt; none if it may continue.
    pub(super) fn reason_to_halt(&self, generation: &Generation) -> Option<String> {
        let has_work_in_flight = !generation.all_steps_reported()
            || matches!(generation.pending_boundary, Some(PendingBoundary::Captions { .. }));
        if self.stop_requested && has_work_in_flight {
            return Some("the coordinator stops".to_owned());
        }
        if self.members.staying_count() < self.members.len() {
            let is_leaving =
                |id: &&WorkerId| self.members.get(**id).is_some_and(|member| member.leave_reason.is_some());
            let is_save_only = self.is_save_only(generation);
            if let Some(worker_id) = generation.members.iter().find(is_leaving)
                && (!is_save_only || has_work_in_flight)
            {
                return Some(format!("worker {worker_id} leaves"));
            }
            if is_save_only {
                return None;
            }
        }
        if self.members.len() <= generation.members.len() {
            return None;
        }
        // A generation halts for a join only after it has made progress itself. Otherwise workers
        // that join again and again could keep the run from making any progress. A generation that
        // cannot make progress at the moment halts at once.
        let is_scoring = matches!(generation.pending_boundary, Some(PendingBoundary::Scores));
        let cannot_progress = self.pause_reason.is_some() || self.failed_save.is_some() || is_scoring;
        if self.progress_count == generation.initial_progress_count && !cannot_progress {
            return None;
        }
        let is_new = |(id, member): &(WorkerId, &Member)| {
            member.leave_reason.is_none()
                && member.state == MemberState::Idle
                && generation.members.binary_search(id).is_err()
        };
        self.members.iter().find(is_new).map(|(worker_id, _)| format!("worker {worker_id} joined"))
    }

    /// Orders all members of the running generation to stop after the work in flight.
    pub(super) fn halt_generation(&mut self, reason: String) {
        self.broadcast(|_, _| Directive::Halt(v1::Halt { reason: reason.clone() }));
        if let Some(generation) = &mut self.generation {
            generation.halt_reason = Some(reason);
        }
    }
}
