//! The data of a live view, collected over several status requests.

use std::{collections::VecDeque, time::Duration};

use proto::v1::StatusResponse;

/// Maximal number of points of a curve.
const CURVE: usize = 512;

/// The collected data. Times are since the first request.
#[derive(Debug, Default)]
pub struct CollectedStatus {
    status: Option<StatusResponse>,
    heard: Duration,
    problem: Option<(Duration, String)>,
    curve: VecDeque<StepValues>,
}

/// The values of a step that are shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepValues {
    /// The number of the step in its stage.
    step: u64,
    /// The loss of the step.
    pub loss: f64,
    /// The mean reward of the chosen candidates; none if the objective has no rewards.
    pub reward: Option<f64>,
}

impl CollectedStatus {
    /// Adds a status.
    pub fn hear(&mut self, now: Duration, status: StatusResponse) {
        let of = |status: &StatusResponse| (status.run.clone(), status.stage);
        let before = self.status.as_ref();
        if before.is_none_or(|before| of(before) != of(&status)) {
            self.curve.clear();
        }
        if before.map(|before| before.step) != Some(status.step) || self.curve.is_empty() {
            // Steps beyond it were given up.
            while self.curve.back().is_some_and(|last| last.step >= status.step) {
                self.curve.pop_back();
            }
            if status.step > 0 {
                self.curve.push_back(StepValues { step: status.step, loss: status.loss, reward: status.reward });
            }
        }
        if self.curve.len() > CURVE {
            self.curve.pop_front();
        }
        self.problem = None;
        self.heard = now;
        self.status = Some(status);
    }

    /// Records that the coordinator did not answer.
    pub fn miss(&mut self, now: Duration, reason: String) {
        let since = self.problem.as_ref().map_or(now, |(since, _)| *since);
        self.problem = Some((since, reason));
    }

    /// The last known status.
    pub fn status(&self) -> Option<&StatusResponse> {
        self.status.as_ref()
    }

    /// The age of that status.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    /// Why the coordinator does not answer, and for how long; none if it does.
    pub fn problem(&self, now: Duration) -> Option<(Duration, &str)> {
        self.problem.as_ref().map(|(since, reason)| (now.saturating_sub(*since), reason.as_str()))
    }

    /// The estimated seconds until the stage ends; none if the run makes no progress.
    pub fn left(&self) -> Option<f64> {
        let status = self.status.as_ref()?;
        status.seconds_left.filter(|_| status.state == "running" && self.problem.is_none())
    }

    /// The last `most` steps of the stage that were seen.
    pub fn curve(&self, most: usize) -> impl Iterator<Item = StepValues> {
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
    fn nothing_is_said_of_the_end_while_the_run_stands_still() {
        let mut seen = CollectedStatus::default();
        let left = Some(80.0);
        seen.hear(seconds(0), StatusResponse { seconds_left: left, ..at("running", 0, 20) });
        assert_eq!(seen.left(), left);
        seen.miss(seconds(1), "no answer".into());
        assert_eq!(seen.left(), None);
        seen.hear(seconds(2), StatusResponse { seconds_left: left, ..at("paused", 0, 22) });
        assert_eq!(seen.left(), None);
    }

    #[test]
    fn a_curve_is_of_one_stage_and_has_each_step_once() {
        let mut seen = CollectedStatus::default();
        for step in [0, 1, 1, 2, 4] {
            seen.hear(seconds(step), at("running", 0, step));
        }
        assert_eq!(seen.curve(9).map(|point| point.loss).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
        assert_eq!(seen.curve(1).map(|point| point.loss).collect::<Vec<_>>(), [4.0]);
        (1..5_000).for_each(|step| seen.hear(seconds(step), at("running", 1, step)));
        assert_eq!(seen.curve(usize::MAX).count(), CURVE);
    }

    #[test]
    fn a_curve_has_nothing_that_was_given_up() {
        let mut seen = CollectedStatus::default();
        for step in [1, 2, 3, 4, 2, 3] {
            seen.hear(seconds(step), at("running", 0, step));
        }
        assert_eq!(seen.curve(9).map(|point| point.loss).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        seen.hear(seconds(9), at("forming", 0, 0));
        assert_eq!(seen.curve(9).count(), 0);
    }

    #[test]
    fn a_curve_is_of_one_run() {
        let mut seen = CollectedStatus::default();
        let of = |run: &str, step| StatusResponse { run: run.into(), ..at("running", 0, step) };
        (1..5).for_each(|step| seen.hear(seconds(step), of("first", step)));
        // Another coordinator at the same address.
        seen.hear(seconds(6), of("second", 4));
        assert_eq!(seen.curve(9).map(|point| point.loss).collect::<Vec<_>>(), [4.0]);
    }

    #[test]
    fn a_coordinator_is_away_since_it_was_first_missed() {
        let mut seen = CollectedStatus::default();
        seen.hear(seconds(1), at("running", 0, 1));
        seen.miss(seconds(2), "no answer".into());
        seen.miss(seconds(5), "refused".into());
        assert_eq!(seen.problem(seconds(6)), Some((seconds(4), "refused")));
        assert_eq!((seen.age(seconds(6)), seen.status().unwrap().step), (seconds(5), 1));
        seen.hear(seconds(7), at("running", 0, 1));
        assert_eq!(seen.problem(seconds(7)), None);
    }
}
