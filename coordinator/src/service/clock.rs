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
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { turn: Instant::now(), now: Duration::ZERO }
    }

    /// A turn begins.
    pub fn turn(&mut self) {
        let now = Instant::now();
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

    #[tokio::test(start_paused = true)]
    async fn what_was_slept_through_does_not_count() {
        let mut clock = Clock::start();
        for seconds in [0.1, 0.4, 3600.0] {
            tokio::time::advance(Duration::from_secs_f64(seconds)).await;
            clock.turn();
        }
        assert_eq!(clock.now(), Duration::from_secs(1));
    }
}
