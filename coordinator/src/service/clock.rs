//! The run's clock: it stops while the coordinator does not process messages.
//!
//! When a coordinator was suspended, or waited for a full disk, its workers' messages of that time
//! are still unread. If that time counted, the heartbeat timeout would evict all workers before
//! their heartbeats are read.

use std::time::Duration;

use tokio::time::Instant;

/// Maximal time that one iteration of the event loop counts.
const MAX_TURN: Duration = Duration::from_millis(500);

/// Time since the start, without the time in which the coordinator was blocked.
pub struct Clock {
    turn: Instant,
    now: Duration,
}

impl Clock {
    /// A clock that starts at `now`.
    pub fn start(now: Instant) -> Self {
        Self { turn: now, now: Duration::ZERO }
    }

    /// Begins an iteration of the event loop at `now`.
    pub fn turn(&mut self, now: Instant) {
        self.now += (now - self.turn).min(MAX_TURN);
        self.turn = now;
    }

    /// The time of this iteration.
    pub fn now(&self) -> Duration {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_slept_through_does_not_count() {
        let mut now = Instant::now();
        let mut clock = Clock::start(now);
        for seconds in [0.1, 0.4, 3600.0] {
            now += Duration::from_secs_f64(seconds);
            clock.turn(now);
        }
        assert_eq!(clock.now(), Duration::from_secs(1));
    }
}
