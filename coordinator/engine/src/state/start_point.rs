//! Where the next generation starts, and which members the run depends on for that.

use std::cmp::Reverse;

use proto::v1;

use crate::{
    membership::{Member, Membership},
    plan::Position,
    record::StateSource,
    state::{checkpoints::Checkpoints, history::History},
    types::WorkerId,
};

/// The position at which a generation starts, and the source of the training state at that
/// position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartPoint {
    /// The position.
    pub start: Position,
    /// The source of the state.
    pub source: StateSource,
}

/// Everything that can give the training state to the next generation.
#[derive(Clone, Copy, Debug)]
pub struct StateHolders<'a> {
    /// The members.
    pub members: &'a Membership,
    /// Decides which states belong to the present history.
    pub history: &'a History,
    /// The saved states.
    pub checkpoints: &'a Checkpoints,
    /// Whether the coordinator stops, so that all members leave.
    pub is_stopping: bool,
}

impl StateHolders<'_> {
    /// The furthest training state that is available, and its source. Several members may hold it;
    /// then a member that stays is preferred to one that leaves, then the one with the lowest id.
    /// If a checkpoint is further than all members, the source is the checkpoint. If there is
    /// neither, it is the seed.
    #[must_use]
    pub fn select_start(&self) -> StartPoint {
        let is_usable = |position: &&v1::Position| self.history.is_current(position);
        let held_states = self.members.iter().filter_map(|(worker_id, member)| {
            let position = Position::from(member.position.as_ref().filter(is_usable)?);
            Some((position, member.leave_reason.is_none(), Reverse(worker_id)))
        });
        let last_checkpoint = self.checkpoints.saved.values().next_back();
        match (held_states.max(), last_checkpoint) {
            (Some((start, _, worker_id)), saved) if saved.is_none_or(|saved| saved.position <= start) => {
                StartPoint { start, source: StateSource::Member(worker_id.0) }
            }
            (_, Some(saved)) => {
                StartPoint { start: saved.position, source: StateSource::Checkpoint(saved.name.clone()) }
            }
            (_, None) => StartPoint { start: Position::default(), source: StateSource::Seed },
        }
    }

    /// The sole holder of the furthest training state: the only member that holds it. None if
    /// several members hold it, or if only a checkpoint does. The eviction of a sole holder loses
    /// steps, unless the state is saved.
    #[must_use]
    pub fn sole_holder(&self) -> Option<WorkerId> {
        let StartPoint { start, source: StateSource::Member(worker_id) } = self.select_start() else { return None };
        let holds = |member: &Member| member.position.as_ref().map(Position::from) == Some(start);
        (self.members.iter().filter(|(_, member)| holds(member)).count() == 1).then_some(worker_id)
    }

    /// A member that holds the furthest state, if that state would be lost: all holders leave, or
    /// the coordinator stops. None if the state is saved.
    #[must_use]
    pub fn holder_about_to_leave(&self) -> Option<WorkerId> {
        if self.members.staying_count() == self.members.len() && !self.is_stopping {
            return None;
        }
        let StartPoint { start, source: StateSource::Member(worker_id) } = self.select_start() else { return None };
        let leaves =
            self.is_stopping || self.members.get(worker_id).is_some_and(|member| member.leave_reason.is_some());
        (leaves && !self.checkpoints.can_restore(start)).then_some(worker_id)
    }
}
