//! Live view of a run as lines, for logs and for terminals without cursor control.

use std::{fmt::Write, time::Duration};

use super::CollectedStatus;
use crate::text::{duration, number, plural};

/// The status in one line; unchanged unless something important changes.
pub fn line(seen: &CollectedStatus, now: Duration) -> String {
    if let Some((_, reason)) = seen.problem(now) {
        return format!("away: {reason}");
    }
    let Some(status) = seen.status() else { return "waiting for the coordinator".to_owned() };
    let mut line = status.state.clone();
    // Writing to a string does not fail.
    if !status.reason.is_empty() {
        _ = write!(line, " ({})", status.reason);
    }
    _ = write!(line, ", stage {} ({}), step {} of {}", status.stage, status.stage_name, status.step, status.steps);
    if status.step > 0 {
        _ = write!(line, ", loss {}", number(status.loss));
        if let Some(reward) = status.reward {
            _ = write!(line, ", reward {}", number(reward));
        }
        _ = write!(line, ", {} images/s", number(status.images_per_second));
    }
    let workers = plural(status.members.len() as u64, "worker", "workers");
    _ = write!(line, ", {workers}, generation {}", status.generation);
    if let Some(left) = seen.left().filter(|left| *left > 0.0) {
        _ = write!(line, ", {} left", duration(left));
    }
    line.replace('\u{a0}', " ")
}

#[cfg(test)]
mod tests {
    use proto::v1::{Member, StatusResponse};

    use super::*;

    #[test]
    fn a_line_says_it_all() {
        let mut seen = CollectedStatus::default();
        assert_eq!(line(&seen, Duration::ZERO), "waiting for the coordinator");
        seen.miss(Duration::ZERO, "http://here:1: no answer".into());
        assert_eq!(line(&seen, Duration::from_secs(3)), "away: http://here:1: no answer");
        let status = |step| StatusResponse {
            state: "running".into(),
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
        seen.hear(Duration::ZERO, status(10));
        seen.hear(Duration::from_secs(1), status(12));
        let expected = "running, stage 2 (dico), step 12 of 50, loss 0.512, reward 1.25, 34.2 images/s, 1 worker, \
                        generation 3, 19 s left";
        assert_eq!(line(&seen, Duration::from_secs(2)), expected);
        let paused = StatusResponse { state: "paused".into(), reason: "kl is 9".into(), ..status(0) };
        seen.hear(Duration::from_secs(3), paused);
        let expected = "paused (kl is 9), stage 2 (dico), step 0 of 50, 1 worker, generation 3";
        assert_eq!(line(&seen, Duration::from_secs(3)), expected);
    }
}
