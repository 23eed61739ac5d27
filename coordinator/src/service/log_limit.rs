//! A rate limit for log lines of one kind, so that many refusals do not flood the log. Suppressed
//! lines are counted.

use std::time::Duration;

use tokio::time::Instant;

/// Maximal number of lines of one kind that are written within a [`PERIOD`].
const MAX_LINES: u32 = 20;
/// The time over which lines are counted, from the first of them.
const PERIOD: Duration = Duration::from_secs(10);

/// The counters of one kind of log line.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// When the current period started; `None` before its first line.
    period_start: Option<Instant>,
    /// The number of lines of the period that were written.
    written: u32,
    /// The number of lines of the period that were suppressed.
    suppressed: u64,
}

impl LogLimit {
    /// Counts a line as written or suppressed. Returns whether it may be written.
    pub fn try_acquire(&mut self, now: Instant) -> bool {
        self.period_start.get_or_insert(now);
        let is_allowed = self.written < MAX_LINES;
        self.written += u32::from(is_allowed);
        self.suppressed += u64::from(!is_allowed);
        is_allowed
    }

    /// Ends the current period if its time is over. Returns the number of lines suppressed in that
    /// period, if any.
    pub fn end_period(&mut self, now: Instant) -> Option<u64> {
        let is_over = self.period_start.is_some_and(|start| now - start >= PERIOD);
        let Self { suppressed, .. } = is_over.then(|| std::mem::take(self))?;
        (suppressed > 0).then_some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_lines_of_a_period_are_suppressed_and_counted() {
        let (mut limit, start) = (LogLimit::default(), Instant::now());
        let written = |limit: &mut LogLimit, now| (0..1_000).filter(|_| limit.try_acquire(now)).count();
        assert_eq!(limit.end_period(start), None);
        assert_eq!(written(&mut limit, start), 20);
        assert_eq!(written(&mut limit, start + PERIOD / 2), 0);
        assert_eq!(limit.end_period(start + PERIOD / 2), None);
        assert_eq!(limit.end_period(start + PERIOD), Some(1_980));
        assert_eq!(limit.end_period(start + PERIOD), None);
        assert_eq!(written(&mut limit, start + 2 * PERIOD), 20);
        let mut quiet = LogLimit::default();
        assert!(quiet.try_acquire(start));
        assert_eq!(quiet.end_period(start + PERIOD), None, "no line was suppressed");
    }
}
