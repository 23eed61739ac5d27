//! The output of `coordinator watch` as lines, for logs and for terminals without cursor control.

use std::{fmt::Write, time::Duration};

use super::CollectedStatus;
use crate::formatting::{format_duration, format_number, format_plural};

/// Formats the status as one line. The line has no ages, so it does not change while the status and
/// the reachability of the coordinator stay the same.
pub fn status_line(collected: &CollectedStatus, now: Duration) -> String {
    if let Some((_, reason)) = collected.failure(now) {
        return format!("unreachable: {reason}");
    }
    let Some(status) = collected.status() else { return "waiting for the coordinator".to_owned() };
    let mut line = status.state().to_string();
    // Writing to a string does not fail.
    if !status.reason.is_empty() {
        _ = write!(line, " ({})", status.reason);
    }
    _ = write!(line, ", stage {} ({}), step {} of {}", status.stage, status.stage_name, status.step, status.steps);
    if status.step > 0 {
        _ = write!(line, ", loss {}", format_number(status.loss));
        if let Some(reward) = status.reward {
            _ = write!(line, ", reward {}", format_number(reward));
        }
        _ = write!(line, ", {} images/s", format_number(status.images_per_second));
    }
    let workers = format_plural(status.members.len() as u64, "worker", "workers");
    _ = write!(line, ", {workers}, generation {}", status.generation);
    if let Some(seconds) = collected.seconds_left().filter(|seconds| *seconds > 0.0) {
        _ = write!(line, ", {} left", format_duration(seconds));
    }
    line.replace('\u{a0}', " ")
}

#[cfg(test)]
mod tests {
    use proto::v1::{Member, RunState, StatusResponse};

    use super::*;

    #[test]
    fn the_status_line_has_state_progress_and_workers() {
        let mut collected = CollectedStatus::default();
        assert_eq!(status_line(&collected, Duration::ZERO), "waiting for the coordinator");
        collected.record_failure(Duration::ZERO, "http://here:1: no response".into());
        assert_eq!(status_line(&collected, Duration::from_secs(3)), "unreachable: http://here:1: no response");
        let status = |step| StatusResponse {
            state: RunState::Running.into(),
            generation: 3,
            stage: 2,
            stage_name: "dico".into(),
            step,
            steps: 50,
            loss: 0.51234,
            reward: Some(1.25),
            images_per_second: 34.2,
            seconds_left: Some(19.0),
            members: vec![Member::default()],
            ..StatusResponse::default()
        };
        collected.record_status(Duration::ZERO, status(10));
        collected.record_status(Duration::from_secs(1), status(12));
        let expected = "running, stage 2 (dico), step 12 of 50, loss 0.512, reward 1.25, 34.2 images/s, 1 worker, \
                        generation 3, 19 s left";
        assert_eq!(status_line(&collected, Duration::from_secs(2)), expected);
        let paused = StatusResponse { state: RunState::Paused.into(), reason: "kl is 9".into(), ..status(0) };
        collected.record_status(Duration::from_secs(3), paused);
        let expected = "paused (kl is 9), stage 2 (dico), step 0 of 50, 1 worker, generation 3";
        assert_eq!(status_line(&collected, Duration::from_secs(3)), expected);
    }
}
