//! The data that `coordinator watch` shows, collected from successive status messages.

use std::{collections::VecDeque, time::Duration};

use proto::v1::{RunState, StatusResponse};

/// Maximal number of points of a curve.
const MAX_CURVE_POINTS: usize = 512;

/// The collected data. Times are durations since the program started to watch.
#[derive(Debug, Default)]
pub struct CollectedStatus {
    /// The last status.
    status: Option<StatusResponse>,
    /// When the last status was received.
    received_at: Duration,
    /// When the coordinator became unreachable, and the last reason; `None` if it is reachable.
    failure: Option<(Duration, String)>,
    /// The curves of the present stage: a point for each committed step with which a status was
    /// received.
    curve: VecDeque<CurvePoint>,
}

/// The values of a status that the curves show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CurvePoint {
    /// The last committed step of the stage at that time.
    step: u64,
    /// The loss of the last step that all members had reported at that time. It may be an earlier
    /// step than `step`.
    pub loss: f64,
    /// The mean reward of the chosen candidates in the same step as `loss`; `None` if the objective
    /// has no rewards.
    pub reward: Option<f64>,
}

impl CollectedStatus {
    /// Records a status.
    pub fn record_status(&mut self, now: Duration, status: StatusResponse) {
        let run_and_stage = |status: &StatusResponse| (status.run_id.clone(), status.stage);
        let before = self.status.as_ref();
        if before.is_none_or(|before| run_and_stage(before) != run_and_stage(&status)) {
            self.curve.clear();
        }
        if before.map(|before| before.step) != Some(status.step) || self.curve.is_empty() {
            // The committed step only decreases when steps are given up: their points go.
            while self.curve.back().is_some_and(|last| last.step >= status.step) {
                self.curve.pop_back();
            }
            if status.step > 0 {
                self.curve.push_back(CurvePoint { step: status.step, loss: status.loss, reward: status.reward });
            }
        }
        if self.curve.len() > MAX_CURVE_POINTS {
            self.curve.pop_front();
        }
        self.failure = None;
        self.received_at = now;
        self.status = Some(status);
    }

    /// Records that the coordinator did not answer.
    pub fn record_failure(&mut self, now: Duration, reason: String) {
        let since = self.failure.as_ref().map_or(now, |(since, _)| *since);
        self.failure = Some((since, reason));
    }

    /// The last status.
    pub fn status(&self) -> Option<&StatusResponse> {
        self.status.as_ref()
    }

    /// The age of the last status.
    pub fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.received_at)
    }

    /// For how long the coordinator has not answered, and why; `None` if it answers.
    pub fn failure(&self, now: Duration) -> Option<(Duration, &str)> {
        self.failure.as_ref().map(|(since, reason)| (now.saturating_sub(*since), reason.as_str()))
    }

    /// The estimated seconds until the end of the stage; `None` if there is no estimate, the run
    /// makes no progress, or the coordinator does not answer.
    pub fn seconds_left(&self) -> Option<f64> {
        let status = self.status.as_ref()?;
        status.seconds_left.filter(|_| status.state() == RunState::Running && self.failure.is_none())
    }

    /// The last `max` points of the curves.
    pub fn last_points(&self, max: usize) -> impl Iterator<Item = CurvePoint> {
        self.curve.iter().skip(self.curve.len().saturating_sub(max)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A status whose loss is the number of its step.
    fn status_at(state: RunState, stage: u32, step: u64) -> StatusResponse {
        StatusResponse { state: state.into(), stage, step, steps: 100, loss: step as f64, ..StatusResponse::default() }
    }

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn seconds_left_are_unknown_while_the_run_makes_no_progress() {
        let mut collected = CollectedStatus::default();
        let left = Some(80.0);
        collected
            .record_status(seconds(0), StatusResponse { seconds_left: left, ..status_at(RunState::Running, 0, 20) });
        assert_eq!(collected.seconds_left(), left);
        collected.record_failure(seconds(1), "no answer".into());
        assert_eq!(collected.seconds_left(), None);
        collected
            .record_status(seconds(2), StatusResponse { seconds_left: left, ..status_at(RunState::Paused, 0, 22) });
        assert_eq!(collected.seconds_left(), None);
    }

    #[test]
    fn a_curve_has_each_step_of_one_stage_once() {
        let mut collected = CollectedStatus::default();
        for step in [0, 1, 1, 2, 4] {
            collected.record_status(seconds(step), status_at(RunState::Running, 0, step));
        }
        assert_eq!(collected.last_points(9).map(|point| point.loss).collect::<Vec<_>>(), [1.0, 2.0, 4.0]);
        assert_eq!(collected.last_points(1).map(|point| point.loss).collect::<Vec<_>>(), [4.0]);
        (1..5_000).for_each(|step| collected.record_status(seconds(step), status_at(RunState::Running, 1, step)));
        assert_eq!(collected.last_points(usize::MAX).count(), MAX_CURVE_POINTS);
    }

    #[test]
    fn a_curve_leaves_out_steps_that_were_given_up() {
        let mut collected = CollectedStatus::default();
        for step in [1, 2, 3, 4, 2, 3] {
            collected.record_status(seconds(step), status_at(RunState::Running, 0, step));
        }
        assert_eq!(collected.last_points(9).map(|point| point.loss).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        collected.record_status(seconds(9), status_at(RunState::Forming, 0, 0));
        assert_eq!(collected.last_points(9).count(), 0);
    }

    #[test]
    fn a_new_run_begins_a_new_curve() {
        let mut collected = CollectedStatus::default();
        let status_of = |run_id: &str, step| StatusResponse {
            run: "coco".into(),
            run_id: run_id.into(),
            ..status_at(RunState::Running, 0, step)
        };
        (1..5).for_each(|step| collected.record_status(seconds(step), status_of("first", step)));
        // Another coordinator answers at the same address, whose run has the same name.
        collected.record_status(seconds(6), status_of("second", 4));
        assert_eq!(collected.last_points(9).map(|point| point.loss).collect::<Vec<_>>(), [4.0]);
    }

    #[test]
    fn a_failure_lasts_from_the_first_failed_request() {
        let mut collected = CollectedStatus::default();
        collected.record_status(seconds(1), status_at(RunState::Running, 0, 1));
        collected.record_failure(seconds(2), "no answer".into());
        collected.record_failure(seconds(5), "refused".into());
        assert_eq!(collected.failure(seconds(6)), Some((seconds(4), "refused")));
        assert_eq!((collected.age(seconds(6)), collected.status().unwrap().step), (seconds(5), 1));
        collected.record_status(seconds(7), status_at(RunState::Running, 0, 1));
        assert_eq!(collected.failure(seconds(7)), None);
    }
}
