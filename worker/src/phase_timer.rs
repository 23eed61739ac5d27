//! The phase timer: how long the training thread spends in each phase of a step. The time of
//! asynchronous GPU work counts in the phase that waits for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Instant;

use metric_catalogue::names;
use tch::Device;

use crate::cuda;

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

/// Measures how long each phase of a step takes. One timer per step.
#[derive(Debug, Default)]
pub struct PhaseTimer {
    /// The total seconds of each phase, in the order of [`names::PHASES`].
    seconds: [Cell<f64>; names::PHASES.len()],
    /// The device whose work each phase includes; none to leave asynchronous work to the phase that
    /// waits for it.
    awaited_device: Option<Device>,
}

impl PhaseTimer {
    /// A timer that waits for `device` at the beginning and the end of each phase, so that a phase
    /// includes the work on the device that it starts. The waits make the step slower.
    #[must_use]
    pub fn awaiting(device: Device) -> Self {
        Self { awaited_device: Some(device), ..Self::default() }
    }

    /// Runs `work`, and adds its duration to a phase. Returns the result.
    pub fn time<T>(&self, phase: StepPhase, work: impl FnOnce() -> T) -> T {
        self.awaited_device.into_iter().for_each(cuda::synchronize);
        let started_at = Instant::now();
        let result = work();
        self.awaited_device.into_iter().for_each(cuda::synchronize);
        self.add(phase, started_at.elapsed().as_secs_f64());
        result
    }

    /// Adds seconds to a phase.
    pub fn add(&self, phase: StepPhase, seconds: f64) {
        let total = &self.seconds[phase as usize];
        total.set(total.get() + seconds);
    }

    /// The seconds of a phase so far.
    #[must_use]
    pub fn seconds(&self, phase: StepPhase) -> f64 {
        self.seconds[phase as usize].get()
    }

    /// The seconds of each phase by name, for a step that took `step_seconds` without waiting. Time
    /// that was not measured counts as [`StepPhase::Learn`].
    pub fn seconds_by_phase(&self, step_seconds: f64) -> HashMap<String, f64> {
        let timed: f64 = self.seconds.iter().map(Cell::get).sum();
        let waited = self.seconds(StepPhase::Wait);
        self.add(StepPhase::Learn, (step_seconds - (timed - waited)).max(0.0));
        names::PHASES.into_iter().zip(&self.seconds).map(|(name, seconds)| (name.to_owned(), seconds.get())).collect()
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
