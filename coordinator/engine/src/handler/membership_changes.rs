//! Membership changes: selects the members of the next generation, decides when the running
//! generation halts for a member that joins or leaves, and when a leaving member is released.
//!
//! A generation that halts finishes the step in flight: its members agree on the halt in the
//! all-reduce of that step. Therefore no applied step is lost when a worker joins or leaves in
//! order. A leaving member is released only when the run does not depend on it any more. The run
//! depends on a leaving member if no staying member and no checkpoint holds the furthest training
//! state that it holds, or if it writes a checkpoint.

use crate::{
    event_kind::EventKind,
    handler::membership::MembershipHandler,
    membership::{Member, MemberState, Membership},
    output::Output,
    settings::Settings,
    state::{State, generations::Generation, start_point::StateHolders},
    types::{Time, WorkerId},
};

/// Upper bound of a worker's delay between two attempts to join.
const MAX_REJOIN_BACKOFF: Time = Time::from_secs(5);

/// The holders of the run's states.
#[must_use]
pub fn state_holders(state: &State) -> StateHolders<'_> {
    let State { members, history, checkpoints, is_stopping, .. } = state;
    StateHolders { members, history, checkpoints, is_stopping: *is_stopping }
}

/// The members of the next generation: the members that do not leave, and the [holder of a state
/// that would be lost](StateHolders::holder_about_to_leave). Only that holder if the coordinator
/// stops, or if the holder is isolated. None if there is no such holder, and fewer than
/// `workers.min` members stay or the coordinator stops.
#[must_use]
pub fn select_members(holders: &StateHolders<'_>, settings: &Settings) -> Option<Vec<WorkerId>> {
    let members = holders.members;
    let leaving_holder = holders.holder_about_to_leave();
    if holders.is_stopping {
        // This generation only saves the state of that member.
        return leaving_holder.map(|worker_id| vec![worker_id]);
    }
    if members.staying_count() < settings.file.workers.min as usize && leaving_holder.is_none() {
        return None;
    }
    if let Some(worker_id) = leaving_holder
        && members.is_isolated(worker_id)
    {
        return Some(vec![worker_id]);
    }
    let is_selected = |(id, member): &(WorkerId, &Member)| member.leave_reason.is_none() || Some(*id) == leaving_holder;
    Some(members.iter().filter(is_selected).map(|(worker_id, _)| worker_id).collect())
}

/// Whether a generation that starts now would give up committed steps that a removed member may
/// still hold. The coordinator then waits for that worker to join again. It waits for as long as a
/// worker takes to notice that its connection is lost (`heartbeat_timeout`) and to retry
/// ([`MAX_REJOIN_BACKOFF`]).
#[must_use]
pub fn must_wait_for_removed_holder(state: &State, now: Time) -> bool {
    let State { settings, history, generations, .. } = state;
    let start = state_holders(state).select_start().start;
    let gives_up_steps =
        start < history.committed && history.branch_points.is_current(history.committed, generations.last_number);
    let deadline = generations
        .state_holder_removed_at
        .saturating_add(settings.heartbeat_timeout())
        .saturating_add(MAX_REJOIN_BACKOFF);
    gives_up_steps && now < deadline
}

/// Whether a generation exists only to save its state: all its members leave afterwards, and no
/// other member takes over the state.
#[must_use]
pub fn is_save_only(members: &Membership, generation: &Generation) -> bool {
    members.staying_count() == 0 || generation.members.iter().all(|id| members.is_isolated(*id))
}

/// Why the running generation has to halt; none if it may continue.
#[must_use]
pub fn reason_to_halt(state: &State, generation: &Generation) -> Option<String> {
    let State { members, .. } = state;
    if state.is_stopping && generation.has_work_in_flight() {
        return Some("the coordinator stops".to_owned());
    }
    if members.staying_count() < members.len() {
        let is_leaving = |id: &&WorkerId| members.get(**id).is_some_and(|member| member.leave_reason.is_some());
        let is_save_only = is_save_only(members, generation);
        if let Some(worker_id) = generation.members.iter().find(is_leaving)
            && (!is_save_only || generation.has_work_in_flight())
        {
            return Some(format!("worker {worker_id} leaves"));
        }
        if is_save_only {
            return None;
        }
    }
    if members.len() <= generation.members.len() {
        return None;
    }
    // A generation halts for a join only after it has made progress itself. Otherwise workers that
    // join again and again could keep the run from making any progress. A generation that cannot
    // make progress at the moment halts at once.
    let cannot_progress =
        state.stage.pause_reason.is_some() || state.checkpoints.failed.is_some() || generation.is_scoring();
    if state.history.progress_count == generation.initial_progress_count && !cannot_progress {
        return None;
    }
    let is_new = |(id, member): &(WorkerId, &Member)| {
        member.leave_reason.is_none()
            && member.state == MemberState::Idle
            && generation.members.binary_search(id).is_err()
    };
    members.iter().find(is_new).map(|(worker_id, _)| format!("worker {worker_id} joined"))
}

/// Releases the leaving members that are idle and that the run does not depend on: orders them to
/// exit, and removes them. Returns whether there were any.
pub fn release_leaving_members(state: &mut State, output: &mut Output, now: Time) -> bool {
    if state.members.staying_count() == state.members.len() {
        return false;
    }
    let writer = state.checkpoints.in_progress.as_ref().map(|saving| saving.writer);
    let needed_ids = [state_holders(state).holder_about_to_leave(), writer];
    let can_leave = |(id, member): &(WorkerId, &Member)| {
        member.leave_reason.is_some() && member.state == MemberState::Idle && !needed_ids.contains(&Some(*id))
    };
    let leaving: Vec<WorkerId> = state.members.iter().filter(can_leave).map(|(id, _)| id).collect();
    for worker_id in &leaving {
        let Some(Member { session, leave_reason, is_isolated, .. }) = state.members.get(*worker_id) else { continue };
        let reason = leave_reason.clone().unwrap_or_default();
        output.send_leave(*session, state.generations.last_number, &reason, !is_isolated);
        output.close(*session);
        MembershipHandler::new(state, output).remove(now, *worker_id, EventKind::Left, &reason);
    }
    !leaving.is_empty()
}
