//! What was seen of a run, from one look to the next.

use std::{collections::VecDeque, time::Duration};

use proto::v1::StatusResponse;

/// Looks that are remembered for curves.
const CURVE: usize = 512;
/// Over how long the pace is taken.
const PACE: Duration = Duration::from_secs(60);

/// What was seen of a run. Times are since the first look.
#[derive(Debug, Default)]
pub struct Seen {
    status: Option<StatusResponse>,
    heard: Duration,
    problem: Option<(Duration, String)>,
    curve: VecDeque<Point>,
    pace: VecDeque<(Duration, u64)>,
}

/// What a step reported, as far as it is seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Its loss.
    pub loss: f64,
    /// The mean reward of the chosen candidates, where the objective has rewards.
    pub reward: Option<f64>,
}

impl Seen {
    /// Takes in how the run stands.
    pub fn hear(&mut self, now: Duration, status: StatusResponse) {
        let place = |status: &StatusResponse| (status.stage, status.step);
        let before = self.status.as_ref().map(place);
        if before.is_none_or(|(stage, step)| stage != status.stage || step > status.step) {
            self.pace.clear();
        }
        if before.is_none_or(|(stage, _)| stage != status.stage) {
            self.curve.clear();
        }
        // Of a run that stands still the pace is not known.
        if status.state == "running" {
            self.pace.push_back((now, status.step));
        } else {
            self.pace.clear();
        }
        while self.pace.len() > 2 && self.pace.front().is_some_and(|(at, _)| now.saturating_sub(*at) > PACE) {
            self.pace.pop_front();
        }
        if before != Some(place(&status)) && status.step > 0 {
            self.curve.push_back(Point { loss: status.loss, reward: status.reward });
        }
        if self.curve.len() > CURVE {
            self.curve.pop_front();
        }
        self.problem = None;
        self.heard = now;
        self.status = Some(status);
    }

    /// Takes in that the coordinator did not answer.
    pub fn miss(&mut self, now: Duration, reason: String) {
        let since = self.problem.as_ref().map_or(now, |(since, _)| *since);
        self.problem = Some((since, reason));
        self.pace.clear();
    }

    /// How the run stood when it was last heard of.
    pub fn status(&self) -> Option<&StatusResponse> {
        self.status.as_ref()
    }

    /// How long ago that was.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    /// Why the coordinator does not answer, and for how long it has not.
    pub fn problem(&self, now: Duration) -> Option<(Duration, &str)> {
        self.problem.as_ref().map(|(since, reason)| (now.saturating_sub(*since), reason.as_str()))
    }

    /// Seconds until the stage is over, at the pace of the last minute.
    pub fn left(&self) -> Option<f64> {
        let ((from, first), (to, last)) = (self.pace.front()?, self.pace.back()?);
        let (steps, seconds) = (last.checked_sub(*first)?, to.saturating_sub(*from).as_secs_f64());
        let status = self.status.as_ref()?;
        (steps > 0).then(|| status.steps.saturating_sub(status.step) as f64 * seconds / steps as f64)
    }

    /// What the steps of the stage reported, as far as they were seen, the last `most` of them.
    pub fn curve(&self, most: usize) -> impl Iterator<Item = Point> {
        self.curve.iter().skip(self.curve.len().saturating_sub(most)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(state: &str, stage: u32, step: u64) -> StatusResponse {
        StatusResponse { state: state.into(), stage, step, steps: 100, loss: step as f64, ..StatusResponse::default() }
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn what_is_left_follows_from_the_pace_of_the_last_minute() {
        let mut seen = Seen::default();
        seen.hear(seconds(0), at("running", 0, 10));
        assert_eq!(seen.left(), None);
        seen.hear(seconds(10), at("running", 0, 20));
        assert_eq!(seen.left(), Some(80.0));
        // Slow now; what was two minutes ago counts no more.
        seen.hear(seconds(100), at("running", 0, 21));
        seen.hear(seconds(110), at("running", 0, 22));
        assert_eq!(seen.left(), Some(780.0));
        seen.hear(seconds(111), at("paused", 0, 22));
        assert_eq!(seen.left(), None);
        seen.hear(seconds(200), at("running", 0, 22));
        seen.hear(seconds(201), at("running", 0, 23));
        assert_eq!(seen.left(), Some(77.0));
        // Another stage, and then an earlier step of it.
        seen.hear(seconds(202), at("running", 1, 5));
        assert_eq!(seen.left(), None);
        seen.hear(seconds(203), at("running", 1, 3));
        assert_eq!(seen.left(), None);
    }

    #[test]
    fn a_curve_is_of_one_stage_and_has_each_step_once() {
        let mut seen = Seen::default();
        for step in [0, 1, 1, 2, 4] {
            seen.hear(seconds(step), at("running", 0, step));
        }
        assert_eq!(seen.curve(9).map(|point| point.loss).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
        assert_eq!(seen.curve(1).map(|point| point.loss).collect::<Vec<_>>(), [4.0]);
        (1..5_000).for_each(|step| seen.hear(seconds(step), at("running", 1, step)));
        assert_eq!((seen.curve(usize::MAX).count(), seen.pace.len()), (CURVE, 61));
    }

    #[test]
    fn a_coordinator_is_away_since_it_was_first_missed() {
        let mut seen = Seen::default();
        seen.hear(seconds(1), at("running", 0, 1));
        seen.miss(seconds(2), "no answer".into());
        seen.miss(seconds(5), "refused".into());
        assert_eq!(seen.problem(seconds(6)), Some((seconds(4), "refused")));
        assert_eq!((seen.age(seconds(6)), seen.status().unwrap().step), (seconds(5), 1));
        seen.hear(seconds(7), at("running", 0, 1));
        assert_eq!(seen.problem(seconds(7)), None);
    }
}
