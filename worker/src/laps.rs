//! Where the time of a step goes, as the training thread sees it: of work that a GPU does behind its back, the time until it is
//! waited for.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Instant;

use statistics::names;

/// A part of a step; numbered as in [`names::PHASES`].
#[derive(Clone, Copy, Debug)]
pub enum Lap {
    /// Waiting for images.
    Load,
    /// Frozen towers see them.
    Vision,
    /// Captions are proposed.
    Search,
    /// They are rewarded.
    Reward,
    /// The reference says how likely they are.
    Reference,
    /// Forward, backward, update, and whatever is none of the others.
    Learn,
    /// Gradients are summed over ranks.
    AllReduce,
    /// Nothing was granted.
    Wait,
}

/// Seconds of each part.
#[derive(Debug, Default)]
pub struct Laps([Cell<f64>; names::PHASES.len()]);

impl Laps {
    /// Does some work, whose time is of this part.
    pub fn time<T>(&self, lap: Lap, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.add(lap, started.elapsed().as_secs_f64());
        done
    }

    /// So many more seconds of this part.
    pub fn add(&self, lap: Lap, seconds: f64) {
        let known = &self.0[lap as usize];
        known.set(known.get() + seconds);
    }

    /// By name, for a step that took so many seconds: what was not timed otherwise went into learning.
    pub fn of(&self, step: f64) -> HashMap<String, f64> {
        let timed: f64 = self.0.iter().map(Cell::get).sum();
        let waited = self.0[Lap::Wait as usize].get();
        self.add(Lap::Learn, (step - (timed - waited)).max(0.0));
        names::PHASES.into_iter().zip(&self.0).map(|(name, seconds)| (name.to_owned(), seconds.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_timed_is_learning() {
        let laps = Laps::default();
        laps.add(Lap::Load, 1.0);
        laps.add(Lap::Search, 2.0);
        laps.add(Lap::Search, 0.5);
        laps.add(Lap::Wait, 7.0);
        let parts = laps.of(10.0);
        assert_eq!((parts["load"], parts["search"], parts["learn"], parts["wait"]), (1.0, 2.5, 6.5, 7.0));
        assert_eq!((parts["all_reduce"], parts.len()), (0.0, 8));
    }
}
