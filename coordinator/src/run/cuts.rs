//! Which states are of the present history, and what became of the others.
//!
//! A generation that starts before a point gives up whatever earlier generations did beyond that point. A member that was cut
//! off may come back with such a state, further than anybody else's perhaps; but others have gone another way meanwhile, and what
//! they did is on record.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::Place;

/// Where generations started, as far as it matters: for each generation the point that no earlier one's state may be beyond.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts(BTreeMap<u64, Place>);

impl Cuts {
    /// From `generation` on the run starts from `start`; nothing of earlier generations beyond it counts.
    pub fn cut(&mut self, generation: u64, start: Place) {
        let start = self.0.get(&generation).map_or(start, |known| start.min(*known));
        // What an earlier generation let pass is cut here if it lies beyond; so that only ever later starts remain.
        self.0.retain(|_, earlier| *earlier < start);
        self.0.insert(generation, start);
    }

    /// Whether a state that `generation` reached, at `place`, is of the present history.
    #[must_use]
    pub fn allow(&self, place: Place, generation: u64) -> bool {
        let next = self.0.range(generation.saturating_add(1)..).next();
        next.is_none_or(|(_, start)| place <= *start)
    }
}

/// What became of a state that a generation reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The run goes on from it, or from one that was trained from it.
    Current,
    /// It was trained, but its stage ended with an earlier state: the best one.
    NotSelected,
    /// It was lost to a failure, or the guard went back to an earlier state.
    GivenUp,
}

/// A stage that ended with an earlier state than its last, because that was the best one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selection {
    /// The state that it ended with.
    pub place: Place,
    /// The last generation before.
    pub generation: u64,
}

/// The history of a run with all its branches.
#[derive(Clone, Debug, Default)]
pub struct Lineage {
    current: Cuts,
    /// By stage; with the cuts before.
    selections: BTreeMap<u32, (Selection, Cuts)>,
}

impl Lineage {
    /// From all cuts, each with the first generation that it does not concern, and all selections.
    #[must_use]
    pub fn new(cuts: &BTreeSet<(u64, Place)>, selections: &BTreeSet<Selection>) -> Self {
        let up_to = |generation: u64| {
            let mut own = Cuts::default();
            cuts.iter().filter(|(first, _)| *first <= generation).for_each(|(first, place)| own.cut(*first, *place));
            own
        };
        let selections =
            selections.iter().map(|selection| (selection.place.stage, (*selection, up_to(selection.generation))));
        Self { current: up_to(u64::MAX), selections: selections.collect() }
    }

    /// What became of a state that `generation` reached, at `place`.
    #[must_use]
    pub fn fate(&self, place: Place, generation: u64) -> Fate {
        if self.current.allow(place, generation) {
            return Fate::Current;
        }
        let was_current = self.selections.get(&place.stage).is_some_and(|(selection, before)| {
            generation <= selection.generation && place > selection.place && before.allow(place, generation)
        });
        if was_current { Fate::NotSelected } else { Fate::GivenUp }
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
            let mut cuts = Cuts::default();
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
        assert_eq!(fates(1, [4, 5, 6, 7]), [Fate::Current, Fate::GivenUp, Fate::GivenUp, Fate::GivenUp]);
        assert_eq!(fates(2, [5, 6, 7, 10]), [Fate::Current, Fate::Current, Fate::NotSelected, Fate::NotSelected]);
        assert_eq!(lineage.fate(at(1, 3), 3), Fate::GivenUp);
        assert_eq!(lineage.fate(at(1, 3), 4), Fate::Current);
    }
}
