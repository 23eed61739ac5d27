//! Step tracker: the position that each member of a generation has reached. After each event the
//! run needs the lowest position, and whether all members are at the same position. Neither takes
//! longer if there are more members.

use std::collections::BTreeMap;

use crate::{plan::Position, types::WorkerId};

/// The last position that each member has reported.
#[derive(Debug)]
pub struct StepTracker {
    positions: BTreeMap<WorkerId, Position>,
    /// The number of members at each position; positions without members are absent.
    member_counts: BTreeMap<Position, usize>,
}

impl StepTracker {
    /// Tracks these members, all at the same position.
    #[must_use]
    pub fn new(members: &[WorkerId], start: Position) -> Self {
        let positions: BTreeMap<_, _> = members.iter().map(|worker_id| (*worker_id, start)).collect();
        Self { member_counts: [(start, positions.len())].into(), positions }
    }

    /// The last position that a member has reported; none if it is not in the generation.
    #[must_use]
    pub fn position_of(&self, worker_id: WorkerId) -> Option<Position> {
        self.positions.get(&worker_id).copied()
    }

    /// The position of the member that is furthest behind.
    #[must_use]
    pub fn min_position(&self) -> Option<Position> {
        self.member_counts.keys().next().copied()
    }

    /// Whether all members have reported exactly this position.
    #[must_use]
    pub fn all_at(&self, position: Position) -> bool {
        self.member_counts.len() <= 1 && self.min_position().is_none_or(|min| min == position)
    }

    /// Records that a member has reported the next position.
    pub fn advance(&mut self, worker_id: WorkerId, to: Position) {
        let Some(position) = self.positions.get_mut(&worker_id) else { return };
        let from = std::mem::replace(position, to);
        if let Some(count) = self.member_counts.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.member_counts.remove(&from);
            }
        }
        *self.member_counts.entry(to).or_default() += 1;
    }

    /// Sets all members to this position, as when all have entered a stage.
    pub fn set_all(&mut self, position: Position) {
        self.positions.values_mut().for_each(|own| *own = position);
        self.member_counts = [(position, self.positions.len())].into();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(step: u64) -> Position {
        Position { stage: 0, step }
    }

    proptest! {
        #[test]
        fn the_answers_equal_those_of_a_scan_over_all_members(advances in prop::collection::vec(0..4_usize, 0..60)) {
            let members = [0, 1, 2, 3].map(WorkerId);
            let mut step_tracker = StepTracker::new(&members, at(0));
            let mut steps = [0; 4];
            for index in advances {
                steps[index] += 1;
                step_tracker.advance(members[index], at(steps[index]));
                prop_assert_eq!(step_tracker.min_position(), steps.iter().min().map(|step| at(*step)));
                for step in 0..5 {
                    prop_assert_eq!(step_tracker.all_at(at(step)), steps.iter().all(|own| *own == step));
                }
                prop_assert_eq!(step_tracker.position_of(members[index]), Some(at(steps[index])));
            }
            step_tracker.set_all(at(99));
            prop_assert!(step_tracker.all_at(at(99)) && step_tracker.position_of(WorkerId(7)).is_none());
        }
    }
}
