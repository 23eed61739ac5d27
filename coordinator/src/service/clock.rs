//! The run's clock: it counts the time in which the coordinator could listen.
//!
//! A coordinator that was stopped, or waited for a full disk, finds what its workers said meanwhile still unread. Were that time
//! counted, it would take all of them for lost before it has read a word.

use std::time::Duration;

use tokio::time::Instant;

/// What a turn may count for at most.
const LONGEST_TURN: Duration = Duration::from_millis(500);

/// Time since the start, without what was missed.
pub struct Clock {
    turn: Instant,
    now: Duration,
}

impl Clock {
    /// A clock that starts at `now`.
    pub fn start(now: Instant) -> Self {
        Self { turn: now, now: Duration::ZERO }
    }

    /// A turn begins at `now`.
    pub fn turn(&mut self, now: Instant) {
        self.now += (now - self.turn).min(LONGEST_TURN);
        self.turn = now;
    }

    /// The time of this turn.
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
