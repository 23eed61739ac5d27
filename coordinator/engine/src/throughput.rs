//! Throughput of the run (wall-clock seconds per step), to estimate the time to the end of a stage.
//! The time of evaluations and checkpoints is included. The time of pauses, and the time from the
//! end of a generation to the first step of the next, is not.

use crate::{plan::Position, types::Time};

/// The minimal weight of the newest step in the moving average.
const MIN_SMOOTHING: f64 = 0.02;

/// Seconds per step: the mean of the first steps of a stage, then an exponential moving average.
#[derive(Debug, Default)]
pub struct Throughput {
    /// The last recorded position, and when it was reached; none after an interruption.
    last_record: Option<(Time, Position)>,
    /// The stage that is measured.
    stage: u32,
    /// The number of steps of the stage that were measured.
    step_count: u64,
    /// The average seconds per step.
    seconds_per_step: f64,
}

impl Throughput {
    /// Records that the run has reached a position. A new stage starts a new average.
    pub fn record_position(&mut self, now: Time, position: Position) {
        if self.stage != position.stage {
            *self = Self { stage: position.stage, ..Self::default() };
        }
        let Some((since, before)) = self.last_record else {
            self.last_record = Some((now, position));
            return;
        };
        let Some(steps) = position.step.checked_sub(before.step).filter(|steps| *steps > 0) else { return };
        let seconds = now.saturating_sub(since).as_secs_f64() / steps as f64;
        self.step_count += steps;
        let weight = (steps as f64 / self.step_count as f64).max(MIN_SMOOTHING);
        self.seconds_per_step += (seconds - self.seconds_per_step) * weight;
        self.last_record = Some((now, position));
    }

    /// Excludes the time from now until the next recorded position.
    pub fn reset_timer(&mut self) {
        self.last_record = None;
    }

    /// The estimated seconds from `from` to step `to` of the same stage; none before the stage's
    /// first measured step.
    pub fn seconds_until(&self, from: Position, to: u64) -> Option<f64> {
        let is_measured = self.step_count > 0 && self.stage == from.stage;
        is_measured.then(|| self.seconds_per_step * to.saturating_sub(from.step) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remaining_time_follows_from_the_measured_steps() {
        let at = |step| Position { stage: 1, step };
        let mut throughput = Throughput::default();
        assert_eq!(throughput.seconds_until(at(0), 10), None);
        for second in 0..4 {
            throughput.record_position(Time::from_secs(2 * second), at(second));
            // The report of another member.
            throughput.record_position(Time::from_secs(2 * second + 1), at(second));
        }
        assert_eq!(throughput.seconds_until(at(3), 10), Some(14.0));
        throughput.reset_timer();
        throughput.record_position(Time::from_secs(1_000), at(4));
        throughput.record_position(Time::from_secs(1_002), at(5));
        assert_eq!(throughput.seconds_until(at(5), 10), Some(10.0));
        assert_eq!(throughput.seconds_until(Position { stage: 2, step: 0 }, 10), None);
    }
}
