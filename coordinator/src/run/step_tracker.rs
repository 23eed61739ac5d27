//! Step tracker: how far each member of a generation is. Each event asks which member is last and
//! whether all are at the same point; both answers cost the same for three members as for ten
//! thousand.

use std::collections::BTreeMap;

use super::plan::Place;

/// The last point that each member has reported.
#[derive(Debug)]
pub struct StepTracker {
    reached: BTreeMap<u32, Place>,
    /// The number of members at each point.
    at: BTreeMap<Place, usize>,
}

impl StepTracker {
    /// All of `ranks` at the same point.
    #[must_use]
    pub fn new(ranks: &[u32], start: Place) -> Self {
        let reached: BTreeMap<_, _> = ranks.iter().map(|rank| (*rank, start)).collect();
        Self { at: [(start, reached.len())].into(), reached }
    }

    /// The last point that a member has reported; none if it is not in the generation.
    #[must_use]
    pub fn of(&self, rank: u32) -> Option<Place> {
        self.reached.get(&rank).copied()
    }

    /// The point of the member that is furthest behind.
    #[must_use]
    pub fn last(&self) -> Option<Place> {
        self.at.keys().next().copied()
    }

    /// Whether all members have reported exactly this point.
    #[must_use]
    pub fn all_at(&self, place: Place) -> bool {
        self.at.len() <= 1 && self.last().is_none_or(|last| last == place)
    }

    /// Records that a member has reported the next point.
    pub fn advance(&mut self, rank: u32, to: Place) {
        let Some(from) = self.reached.get_mut(&rank).map(|reached| std::mem::replace(reached, to)) else { return };
        if let Some(count) = self.at.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.at.remove(&from);
            }
        }
        *self.at.entry(to).or_default() += 1;
    }

    /// Sets all members to this point, as when all have entered a stage.
    pub fn set_all(&mut self, place: Place) {
        self.reached.values_mut().for_each(|reached| *reached = place);
        self.at = [(place, self.reached.len())].into();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(step: u64) -> Place {
        Place { stage: 0, step }
    }

    proptest! {
        #[test]
        fn it_answers_as_a_look_at_every_member_would(moves in prop::collection::vec(0..4_u32, 0..60)) {
            let mut step_tracker = StepTracker::new(&[0, 1, 2, 3], at(0));
            let mut steps = [0; 4];
            for rank in moves {
                steps[rank as usize] += 1;
                step_tracker.advance(rank, at(steps[rank as usize]));
                prop_assert_eq!(step_tracker.last(), steps.iter().min().map(|step| at(*step)));
                for step in 0..5 {
                    prop_assert_eq!(step_tracker.all_at(at(step)), steps.iter().all(|own| *own == step));
                }
                prop_assert_eq!(step_tracker.of(rank), Some(at(steps[rank as usize])));
            }
            step_tracker.set_all(at(99));
            prop_assert!(step_tracker.all_at(at(99)) && step_tracker.of(7).is_none());
        }
    }
}
