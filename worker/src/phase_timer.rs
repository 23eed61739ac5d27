//! Phase timer: how long the training thread spends in each phase of a step. The time of
//! asynchronous GPU work counts in the phase that waits for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Instant;

use statistics::names;

/// A phase of a step; numbered as in [`names::PHASES`].
#[derive(Clone, Copy, Debug)]
pub enum StepPhase {
    /// Waiting for the data loader.
    Load,
    /// Encoding images with frozen vision encoders.
    Vision,
    /// Generating candidates.
    Search,
    /// Computing rewards.
    Reward,
    /// Computing log-probabilities under the reference policy.
    Reference,
    /// Forward and backward pass, update, and everything that is in no other phase.
    Learn,
    /// All-reduce of the gradients.
    AllReduce,
    /// Waiting for the coordinator to grant steps.
    Wait,
}

/// The time of each phase, in seconds.
#[derive(Debug, Default)]
pub struct PhaseTimer([Cell<f64>; names::PHASES.len()]);

impl PhaseTimer {
    /// Runs `work`, and adds its time to a phase.
    pub fn time<T>(&self, lap: StepPhase, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.add(lap, started.elapsed().as_secs_f64());
        done
    }

    /// Adds seconds to a phase.
    pub fn add(&self, lap: StepPhase, seconds: f64) {
        let known = &self.0[lap as usize];
        known.set(known.get() + seconds);
    }

    /// The times by name, for a step of this duration in seconds: time that was not measured counts
    /// as learning.
    pub fn of(&self, step: f64) -> HashMap<String, f64> {
        let timed: f64 = self.0.iter().map(Cell::get).sum();
        let waited = self.0[StepPhase::Wait as usize].get();
        self.add(StepPhase::Learn, (step - (timed - waited)).max(0.0));
        names::PHASES.into_iter().zip(&self.0).map(|(name, seconds)| (name.to_owned(), seconds.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_timed_is_learning() {
        let timer = PhaseTimer::default();
        timer.add(StepPhase::Load, 1.0);
        timer.add(StepPhase::Search, 2.0);
        timer.add(StepPhase::Search, 0.5);
        timer.add(StepPhase::Wait, 7.0);
        let parts = timer.of(10.0);
        assert_eq!((parts["load"], parts["search"], parts["learn"], parts["wait"]), (1.0, 2.5, 6.5, 7.0));
        assert_eq!((parts["all_reduce"], parts.len()), (0.0, 8));
    }
}
