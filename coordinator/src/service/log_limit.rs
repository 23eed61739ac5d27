//! Limits how many log lines of one kind are written, so that a flood of refusals does not flood
//! the log. Suppressed lines are counted.

use std::time::Duration;

use tokio::time::Instant;

/// Most lines of one kind within [`PERIOD`].
const MAX_LINES: u32 = 20;
/// The time over which lines are counted.
const PERIOD: Duration = Duration::from_secs(10);

/// The state of one kind of log line.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// When the current period began; none before the first line of a period.
    began: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Whether a line may be written now; a line that may not is counted as suppressed.
    pub fn allows(&mut self, now: Instant) -> bool {
        self.began.get_or_insert(now);
        let allowed = self.lines < MAX_LINES;
        self.lines += u32::from(allowed);
        self.suppressed += u64::from(!allowed);
        allowed
    }

    /// Ends the current period if its time is over; returns how many lines it suppressed, if any.
    pub fn end_period(&mut self, now: Instant) -> Option<u64> {
        let is_over = self.began.is_some_and(|began| now - began >= PERIOD);
        let Self { suppressed, .. } = is_over.then(|| std::mem::take(self))?;
        (suppressed > 0).then_some(suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_lines_of_a_period_are_suppressed_and_counted() {
        let (mut limit, began) = (LogLimit::default(), Instant::now());
        let written = |limit: &mut LogLimit, now| (0..1_000).filter(|_| limit.allows(now)).count();
        assert_eq!(limit.end_period(began), None);
        assert_eq!(written(&mut limit, began), 20);
        assert_eq!(written(&mut limit, began + PERIOD / 2), 0);
        assert_eq!(limit.end_period(began + PERIOD / 2), None);
        assert_eq!(limit.end_period(began + PERIOD), Some(1_980));
        assert_eq!(limit.end_period(began + PERIOD), None);
        assert_eq!(written(&mut limit, began + 2 * PERIOD), 20);
        let mut calm = LogLimit::default();
        assert!(calm.allows(began));
        assert_eq!(calm.end_period(began + PERIOD), None, "no line was suppressed");
    }
}
