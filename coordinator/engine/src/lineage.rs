//! Lineage: which training states belong to the present history of a run, and which belong to
//! abandoned branches.
//!
//! When a generation starts at a position, the states beyond that position that earlier generations
//! have trained are *given up*: the run will never use them. A worker that was disconnected may
//! join again with a state that was given up, and that state may be further than the states of all
//! members. The run cannot continue from it, because the members have trained other steps from the
//! branch point on, and the journal has recorded these steps.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::Position;

/// The positions at which generations started (branch points): states of earlier generations beyond
/// the start of a later one are given up. Contains only branch points that are not implied by a
/// later one, so that positions increase with generations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BranchPoints(BTreeMap<u64, Position>);

impl BranchPoints {
    /// Records that the run starts from `start` in `generation`: states of earlier generations
    /// beyond `start` are given up.
    pub fn add(&mut self, generation: u64, start: Position) {
        let start = self.0.get(&generation).map_or(start, |recorded| start.min(*recorded));
        // This branch point implies earlier ones at or beyond it. Only those with earlier positions
        // remain.
        self.0.retain(|_, earlier| *earlier < start);
        self.0.insert(generation, start);
    }

    /// Whether the state that `generation` reached at `position` belongs to the present history.
    #[must_use]
    pub fn is_current(&self, position: Position, generation: u64) -> bool {
        let next = self.0.range(generation.saturating_add(1)..).next();
        next.is_none_or(|(_, start)| position <= *start)
    }
}

/// Whether the run still uses a state that a generation reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFate {
    /// The run continues from it, or from a state that was trained from it.
    Current,
    /// It was trained, but model selection chose an earlier state of the stage: the best one.
    NotSelected,
    /// It was lost in a failure, or the guard rolled back to an earlier state.
    GivenUp,
}

/// The result of model selection for a stage that ended with an earlier state than its last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelSelection {
    /// The position of the state that the stage ended with.
    pub position: Position,
    /// The last generation of the stage.
    pub generation: u64,
}

/// The history of a run with all its branches. Determines the fate of each recorded state.
#[derive(Clone, Debug, Default)]
pub struct Lineage {
    /// All branch points of the run.
    current: BranchPoints,
    /// By stage: the result of model selection, and the branch points before it.
    selections: BTreeMap<u32, (ModelSelection, BranchPoints)>,
}

impl Lineage {
    /// The lineage with these branch points, each with the generation that starts there, and these
    /// selections.
    #[must_use]
    pub fn new(branch_points: &BTreeSet<(u64, Position)>, selections: &BTreeSet<ModelSelection>) -> Self {
        let branch_points_up_to = |last_generation: u64| {
            let mut selected = BranchPoints::default();
            let points = branch_points.iter().filter(|(generation, _)| *generation <= last_generation);
            points.for_each(|(generation, position)| selected.add(*generation, *position));
            selected
        };
        let current = branch_points_up_to(u64::MAX);
        // If the run later starts from before the selected state, the selection is given up with
        // it.
        let selections = selections
            .iter()
            .filter(|selection| current.is_current(selection.position, selection.generation))
            .map(|selection| (selection.position.stage, (*selection, branch_points_up_to(selection.generation))));
        let selections = selections.collect();
        Self { current, selections }
    }

    /// The fate of the state that `generation` reached at `position`.
    #[must_use]
    pub fn fate(&self, position: Position, generation: u64) -> StateFate {
        if self.current.is_current(position, generation) {
            return StateFate::Current;
        }
        let was_current_before_selection = self.selections.get(&position.stage).is_some_and(|(selection, before)| {
            generation <= selection.generation
                && position > selection.position
                && before.is_current(position, generation)
        });
        if was_current_before_selection { StateFate::NotSelected } else { StateFate::GivenUp }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_state_is_current_if_no_later_generation_started_before_it(
            starts in prop::collection::vec(0..9_u64, 0..12), step in 0..9_u64, generation in 0..14_u64,
        ) {
            let mut branch_points = BranchPoints::default();
            let at = |step| Position { stage: 0, step };
            for (number, start) in (1..).zip(&starts) {
                branch_points.add(number, at(*start));
            }
            let is_given_up = (1..).zip(&starts).any(|(number, start)| number > generation && *start < step);
            prop_assert_eq!(branch_points.is_current(at(step), generation), !is_given_up);
        }
    }

    #[test]
    fn states_beyond_the_selected_state_are_not_given_up() {
        let at = |stage, step| Position { stage, step };
        // The second generation starts at step 4. The stage ends with the state at step 6 of 10,
        // and the third and fourth generations start from that state.
        let branch_points = [(1, at(0, 0)), (2, at(0, 4)), (3, at(0, 6)), (4, at(0, 6))];
        let selection = ModelSelection { position: at(0, 6), generation: 2 };
        let lineage = Lineage::new(&branch_points.into(), &[selection].into());
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
        // The checkpoint of step 6 is damaged: the fifth generation starts from the seed.
        let branch_points = branch_points.into_iter().chain([(5, at(0, 0))]).collect();
        let lineage = Lineage::new(&branch_points, &[selection].into());
        assert!((1..=10).all(|step| lineage.fate(at(0, step), 2) == StateFate::GivenUp));
    }
}
