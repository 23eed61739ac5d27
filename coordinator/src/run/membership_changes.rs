//! Membership changes: selects the members of the next generation, decides when the running
//! generation halts for a member that joins or leaves, and when a leaving member is released.
//!
//! A generation that halts finishes the step in flight: its members agree on the halt in the
//! all-reduce of that step. A join or an orderly leave therefore costs no training work. A member
//! that leaves is kept while the run depends on it: while it holds the only copy of the furthest
//! state, or while it writes a checkpoint.

use proto::{v1, v1::directive::Directive};
use serde_json::json;

use super::{
    Action, Run, Time,
    generation::{Generation, StartPoint},
    membership::{Member, MemberState},
    one_line,
    plan::Place,
    progress::PendingBoundary,
    record::{EventKind, Source},
};

/// Upper bound of a worker's delay between two attempts to join.
const BACK_OFF: Time = Time::from_secs(5);

impl Run {
    /// Handles `Leaving`: a member announces that it wants to leave.
    pub(super) fn leaving(&mut self, rank: u32, leaving: &v1::Leaving) {
        self.wants_to_go(rank, one_line(&leaving.reason));
    }

    /// Marks a member as leaving. [`Self::dismiss`] releases it once nothing depends on it.
    pub(super) fn wants_to_go(&mut self, rank: u32, reason: String) {
        if self.members.get(rank).is_some_and(|member| member.leaving.is_none()) {
            self.event(EventKind::Leaving, json!({ "rank": rank, "reason": reason }));
            self.members.wants_to_go(rank, reason);
        }
    }

    /// The members of the next generation: all that do not leave, if they are at least
    /// `workers.min`, and a leaving member that holds the only copy of the furthest state. None if
    /// too few stay.
    pub(super) fn next_members(&self) -> Option<Vec<u32>> {
        let indispensable = self.indispensable();
        if self.stopping {
            // Only to save what is nowhere else.
            return indispensable.map(|rank| vec![rank]);
        }
        if self.members.staying() < self.file.workers.min as usize && indispensable.is_none() {
            return None;
        }
        if let Some(rank) = indispensable
            && self.is_isolated(rank)
        {
            return Some(vec![rank]);
        }
        let is_in = |(rank, member): &(u32, &Member)| member.leaving.is_none() || Some(*rank) == indispensable;
        Some(self.members.iter().filter(is_in).map(|(rank, _)| rank).collect())
    }

    /// Whether a generation that starts from `start` would give up steps that a disconnected member
    /// may still hold. The coordinator waits for such a member for as long as a worker needs to
    /// notice that its connection is lost (`heartbeat_timeout`) and to join again ([`BACK_OFF`]).
    pub(super) fn is_missed(&self, now: Time, start: Place) -> bool {
        let given_up = start < self.committed && self.cuts.allow(self.committed, self.last_generation);
        given_up && now < self.missed_since.saturating_add(self.heartbeat_timeout()).saturating_add(BACK_OFF)
    }

    /// The member that leaves, or is stopped with the coordinator, while it holds the only copy of
    /// the furthest state.
    pub(super) fn indispensable(&self) -> Option<u32> {
        if self.members.staying() == self.members.len() && !self.stopping {
            return None;
        }
        let StartPoint { start, source: Source::Member(rank) } = self.origin() else { return None };
        let leaves = self.stopping || self.members.get(rank).is_some_and(|member| member.leaving.is_some());
        (leaves && !self.is_saved(start)).then_some(rank)
    }

    /// Whether a state can be restored without a member: from the seed or from a checkpoint.
    pub(super) fn is_saved(&self, place: Place) -> bool {
        place == Place::default() || self.checkpoints.contains_key(&place)
    }

    /// Whether other members cannot reach a member.
    pub(super) fn is_isolated(&self, rank: u32) -> bool {
        self.members.get(rank).is_some_and(|member| member.isolated)
    }

    /// Whether the members of a generation are all to leave once their state is saved: no member
    /// takes it over.
    pub(super) fn only_saves(&self, generation: &Generation) -> bool {
        self.members.staying() == 0 || generation.members.iter().all(|rank| self.is_isolated(*rank))
    }

    /// Releases the leaving members that are idle and that nothing depends on.
    pub(super) fn dismiss(&mut self, now: Time) {
        if self.members.staying() == self.members.len() {
            return;
        }
        let kept = [self.indispensable(), self.saving.as_ref().map(|saving| saving.writer)];
        let free = |(rank, member): &(u32, &Member)| {
            member.leaving.is_some() && member.standing == MemberState::Idle && !kept.contains(&Some(*rank))
        };
        let going = self.members.iter().filter(free);
        let going: Vec<_> = going.map(|(rank, member)| (rank, member.session, member.leaving.clone())).collect();
        for (rank, session, reason) in going {
            let reason = reason.unwrap_or_default();
            self.leave(session, &reason, !self.is_isolated(rank));
            self.actions.push(Action::Close { session, refusal: None });
            self.remove(now, rank, EventKind::Left, &reason);
        }
    }

    /// Why the running generation has to halt; none if it may go on.
    pub(super) fn reason_to_halt(&self, generation: &Generation) -> Option<String> {
        let under_way = !generation.quiet() || matches!(generation.awaiting, Some(PendingBoundary::Captions { .. }));
        if self.stopping && under_way {
            return Some("the coordinator stops".to_owned());
        }
        if self.members.staying() < self.members.len() {
            let leaves = |rank: &&u32| self.members.get(**rank).is_some_and(|member| member.leaving.is_some());
            let only_saves = self.only_saves(generation);
            if let Some(rank) = generation.members.iter().find(leaves)
                && (!only_saves || under_way)
            {
                return Some(format!("rank {rank} leaves"));
            }
            if only_saves {
                return None;
            }
        }
        if self.members.len() <= generation.members.len() {
            return None;
        }
        // Workers that join again and again must not keep the others from making progress: a
        // generation halts for a join only after it has made progress itself.
        let scoring = matches!(generation.awaiting, Some(PendingBoundary::Scores));
        let held_up = self.paused.is_some() || self.unsaved.is_some() || scoring;
        if self.progress == generation.began && !held_up {
            return None;
        }
        let is_new = |(rank, member): &(u32, &Member)| {
            member.leaving.is_none()
                && member.standing == MemberState::Idle
                && generation.members.binary_search(rank).is_err()
        };
        self.members.iter().find(is_new).map(|(rank, _)| format!("rank {rank} joined"))
    }

    /// Tells all members of the running generation to stop after what is in flight.
    pub(super) fn halt(&mut self, reason: String) {
        self.tell(|_, _| Directive::Halt(v1::Halt { reason: reason.clone() }));
        if let Some(generation) = &mut self.generation {
            generation.ending = Some(reason);
        }
    }
}
