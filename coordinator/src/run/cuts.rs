//! Which states are of the present history.
//!
//! A generation that starts before a point gives up whatever earlier generations did beyond that point. A member that was cut
//! off may come back with such a state, further than anybody else's perhaps; but others have gone another way meanwhile, and what
//! they did is on record.

use std::collections::BTreeMap;

use super::plan::Place;

/// Where generations started, as far as it matters: for each generation the point that no earlier one's state may be beyond.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cuts(BTreeMap<u64, Place>);

impl Cuts {
    /// From `generation` on the run starts from `start`; nothing of earlier generations beyond it counts.
    pub fn cut(&mut self, generation: u64, start: Place) {
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
}
