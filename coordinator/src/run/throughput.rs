//! Throughput of the run in wall time, for the estimated time to the end of a stage. Includes
//! evaluations and checkpoints, but not pauses and recoveries.

use super::{Time, plan::Place};

/// The minimal weight of the newest step in the moving average.
const SMOOTHING: f64 = 0.02;

/// Seconds per step: the mean of the first steps of a stage, then an exponential moving average.
#[derive(Debug, Default)]
pub struct Throughput {
    last: Option<(Time, Place)>,
    stage: u32,
    steps: u64,
    seconds: f64,
}

impl Throughput {
    /// Records that the run has reached a point. A new stage starts a new average.
    pub fn reached(&mut self, now: Time, place: Place) {
        if self.stage != place.stage {
            *self = Self { stage: place.stage, ..Self::default() };
        }
        let Some((since, before)) = self.last else {
            self.last = Some((now, place));
            return;
        };
        let Some(steps) = place.step.checked_sub(before.step).filter(|steps| *steps > 0) else { return };
        let seconds = now.saturating_sub(since).as_secs_f64() / steps as f64;
        self.steps += steps;
        self.seconds += (seconds - self.seconds) * (steps as f64 / self.steps as f64).max(SMOOTHING);
        self.last = Some((now, place));
    }

    /// Excludes the time from now until the next reached point.
    pub fn interrupt(&mut self) {
        self.last = None;
    }

    /// The estimated seconds from `from` to step `to` of the same stage; none before the stage's
    /// first measured step.
    pub fn until(&self, from: Place, to: u64) -> Option<f64> {
        (self.steps > 0 && self.stage == from.stage).then(|| self.seconds * to.saturating_sub(from.step) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_follows_from_the_pace() {
        let at = |step| Place { stage: 1, step };
        let mut throughput = Throughput::default();
        assert_eq!(throughput.until(at(0), 10), None);
        for second in 0..4 {
            throughput.reached(Time::from_secs(2 * second), at(second));
            // The report of another member.
            throughput.reached(Time::from_secs(2 * second + 1), at(second));
        }
        assert_eq!(throughput.until(at(3), 10), Some(14.0));
        throughput.interrupt();
        throughput.reached(Time::from_secs(1_000), at(4));
        throughput.reached(Time::from_secs(1_002), at(5));
        assert_eq!(throughput.until(at(5), 10), Some(10.0));
        assert_eq!(throughput.until(Place { stage: 2, step: 0 }, 10), None);
    }
}
