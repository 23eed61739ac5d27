//! The phase timer: how long the training thread spends in each phase of a step. The time of
//! asynchronous GPU work counts in the phase that waits for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Instant;

use metric_catalogue::names;

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
    /// Forward and backward pass, optimizer step, and all work that does not belong to another
    /// phase.
    Learn,
    /// All-reduce of the gradients.
    AllReduce,
    /// Waiting for the coordinator to grant steps.
    Wait,
}

/// The total seconds of each phase, in the order of [`names::PHASES`]. One timer per step.
#[derive(Debug, Default)]
pub struct PhaseTimer([Cell<f64>; names::PHASES.len()]);

impl PhaseTimer {
    /// Runs `work`, and adds its duration to a phase. Returns the result.
    pub fn time<T>(&self, phase: StepPhase, work: impl FnOnce() -> T) -> T {
        let started_at = Instant::now();
        let result = work();
        self.add(phase, started_at.elapsed().as_secs_f64());
        result
    }

    /// Adds seconds to a phase.
    pub fn add(&self, phase: StepPhase, seconds: f64) {
        let total = &self.0[phase as usize];
        total.set(total.get() + seconds);
    }

    /// The seconds of each phase by name, for a step that took `step_seconds` without waiting. Time
    /// that was not measured counts as [`StepPhase::Learn`].
    pub fn seconds_by_phase(&self, step_seconds: f64) -> HashMap<String, f64> {
        let timed: f64 = self.0.iter().map(Cell::get).sum();
        let waited = self.0[StepPhase::Wait as usize].get();
        self.add(StepPhase::Learn, (step_seconds - (timed - waited)).max(0.0));
        names::PHASES.into_iter().zip(&self.0).map(|(name, seconds)| (name.to_owned(), seconds.get())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_was_not_measured_counts_as_learning() {
        let timer = PhaseTimer::default();
        timer.add(StepPhase::Load, 1.0);
        timer.add(StepPhase::Search, 2.0);
        timer.add(StepPhase::Search, 0.5);
        timer.add(StepPhase::Wait, 7.0);
        let times = timer.seconds_by_phase(10.0);
        assert_eq!((times["load"], times["search"], times["learn"], times["wait"]), (1.0, 2.5, 6.5, 7.0));
        assert_eq!((times["all_reduce"], times.len()), (0.0, 8));
    }
}
