//! Lineage: which states belong to the present history of a run, and which belong to abandoned
//! branches.
//!
//! A generation that starts before a point gives up what earlier generations trained beyond that
//! point. A member that was disconnected may come back with such a state, which may even be further
//! than all others. The run cannot use it: other members have trained another branch since, and
//! those steps are recorded.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Place;

/// The branch points that still matter: for each generation, the point beyond which states of
/// earlier generations are given up. Points increase with generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BranchPoints(BTreeMap<u64, Place>);

impl BranchPoints {
    /// Records that the run starts from `start` in `generation`: states of earlier generations
    /// beyond `start` are given up.
    pub fn cut(&mut self, generation: u64, start: Place) {
        let start = self.0.get(&generation).map_or(start, |known| start.min(*known));
        // Earlier cuts at or beyond this one are implied by it. Only cuts with earlier points
        // remain.
        self.0.retain(|_, earlier| *earlier < start);
        self.0.insert(generation, start);
    }

    /// Whether the state that `generation` reached at `place` belongs to the present history.
    #[must_use]
    pub fn allow(&self, place: Place, generation: u64) -> bool {
        let next = self.0.range(generation.saturating_add(1)..).next();
        next.is_none_or(|(_, start)| place <= *start)
    }
}

/// The fate of a state that a generation reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFate {
    /// The run continues from it, or from a state that was trained from it.
    Current,
    /// It was trained, but its stage ended with an earlier state: the best one.
    NotSelected,
    /// It was lost to a failure, or the guard went back to an earlier state.
    GivenUp,
}

/// Model selection at the end of a stage: the stage ended with its best state, not with its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selection {
    /// The state that it ended with.
    pub place: Place,
    /// The last generation of the stage.
    pub generation: u64,
}

/// The history of a run with all its branches, to classify recorded states.
#[derive(Clone, Debug, Default)]
pub struct Lineage {
    current: BranchPoints,
    /// By stage: the selection, and the cuts that were made before it.
    selections: BTreeMap<u32, (Selection, BranchPoints)>,
}

impl Lineage {
    /// From all cuts, each with the first generation whose states it does not concern, and all
    /// selections.
    #[must_use]
    pub fn new(cuts: &BTreeSet<(u64, Place)>, selections: &BTreeSet<Selection>) -> Self {
        let up_to = |generation: u64| {
            let mut own = BranchPoints::default();
            cuts.iter().filter(|(first, _)| *first <= generation).for_each(|(first, place)| own.cut(*first, *place));
            own
        };
        let selections =
            selections.iter().map(|selection| (selection.place.stage, (*selection, up_to(selection.generation))));
        Self { current: up_to(u64::MAX), selections: selections.collect() }
    }

    /// The fate of the state that `generation` reached at `place`.
    #[must_use]
    pub fn fate(&self, place: Place, generation: u64) -> StateFate {
        if self.current.allow(place, generation) {
            return StateFate::Current;
        }
        let was_current = self.selections.get(&place.stage).is_some_and(|(selection, before)| {
            generation <= selection.generation && place > selection.place && before.allow(place, generation)
        });
        if was_current { StateFate::NotSelected } else { StateFate::GivenUp }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_state_counts_if_no_later_generation_started_before_it(
            starts in prop::collection::vec(0..9_u64, 0..12), step in 0..9_u64, generation in 0..14_u64,
        ) {
            let mut cuts = BranchPoints::default();
            let at = |step| Place { stage: 0, step };
            for (number, start) in (1..).zip(&starts) {
                cuts.cut(number, at(*start));
            }
            let cut = (1..).zip(&starts).any(|(number, start)| number > generation && *start < step);
            prop_assert_eq!(cuts.allow(at(step), generation), !cut);
        }
    }

    #[test]
    fn what_a_stage_trained_beyond_its_best_state_is_not_given_up() {
        let at = |stage, step| Place { stage, step };
        // The second generation starts again at step 4; the stage ends with step 6 of 10, and twice a generation starts there.
        let cuts = [(1, at(0, 0)), (2, at(0, 4)), (3, at(0, 6)), (3, at(0, 6)), (4, at(0, 6))];
        let selection = Selection { place: at(0, 6), generation: 2 };
        let lineage = Lineage::new(&cuts.into(), &[selection].into());
        let fates = |generation, steps: [u64; 4]| steps.map(|step| lineage.fate(at(0, step), generation));
        assert_eq!(
            fates(1, [4, 5, 6, 7]),
            [StateFate::Current, StateFate::GivenUp, StateFate::GivenUp, StateFate::GivenUp]
        );
        assert_eq!(
            fates(2, [5, 6, 7, 10]),
            [StateFate::Current, StateFate::Current, StateFate::NotSelected, StateFate::NotSelected]
        );
        assert_eq!(lineage.fate(at(1, 3), 3), StateFate::GivenUp);
        assert_eq!(lineage.fate(at(1, 3), 4), StateFate::Current);
    }
}
