//! The run's clock. It advances by at most half a second while the coordinator does not process
//! messages.
//!
//! When a coordinator was suspended, or waited for a full disk, the messages that workers sent in
//! that time are still unread. If that time counted, all workers would exceed the heartbeat timeout
//! before the coordinator reads their heartbeats.

use std::time::Duration;

use tokio::time::Instant;

/// Maximal time that one iteration of the event loop adds to the clock.
const MAX_ITERATION_TIME: Duration = Duration::from_millis(500);

/// Time since the start, without most of the time in which the coordinator was blocked: see
/// [`MAX_ITERATION_TIME`].
pub struct Clock {
    last_iteration: Instant,
    run_time: Duration,
}

impl Clock {
    /// A clock whose time is zero at `now`.
    pub fn start(now: Instant) -> Self {
        Self { last_iteration: now, run_time: Duration::ZERO }
    }

    /// Begins an iteration of the event loop at `now`.
    pub fn begin_iteration(&mut self, now: Instant) {
        self.run_time += (now - self.last_iteration).min(MAX_ITERATION_TIME);
        self.last_iteration = now;
    }

    /// The run's time at the start of this iteration.
    pub fn now(&self) -> Duration {
        self.run_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_suspension_does_not_count() {
        let mut now = Instant::now();
        let mut clock = Clock::start(now);
        for seconds in [0.1, 0.4, 3600.0] {
            now += Duration::from_secs_f64(seconds);
            clock.begin_iteration(now);
        }
        // The suspension of an hour counts as half a second.
        assert_eq!(clock.now(), Duration::from_secs(1));
    }
}
