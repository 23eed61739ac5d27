//! The coordinator's answer to a join, validated.

use std::time::Duration;

use config::{MAX_WORKERS, RunFile};
use proto::{PROTOCOL_VERSION, v1};

use super::MAX_REASON_CHARS;
use crate::protocol::ProtocolViolation;

/// Maximal length of the session token and of a run's name, in bytes. The token consists of at most
/// 512 bytes that the worker chose, and its id.
const MAX_NAME_BYTES: usize = 1_024;
/// Maximal heartbeat timeout: that of a run file, 30 days.
const MAX_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2_592_000);

/// The settings of a worker's membership in a run.
pub struct Membership {
    /// The worker's id.
    pub rank: u32,
    /// The secret that opens a session.
    pub session_token: String,
    /// The run file.
    pub run: RunFile,
    /// The run's id.
    pub run_id: String,
    /// The interval of heartbeats.
    pub heartbeat: Duration,
    /// The heartbeat timeout: a connection without messages for this long counts as lost.
    pub heartbeat_timeout: Duration,
}

impl Membership {
    /// Validates the answer to a worker that wants this id, or any.
    ///
    /// # Errors
    /// What is invalid in it.
    pub fn read(answer: v1::JoinResponse, wanted: Option<u32>) -> Result<Self, ProtocolViolation> {
        let v1::JoinResponse { protocol_version, rank, session_token, run_file, run_id, .. } = answer;
        let [heartbeat, heartbeat_timeout] =
            [answer.heartbeat_interval_ms, answer.heartbeat_timeout_ms].map(Duration::from_millis);
        need(protocol_version == PROTOCOL_VERSION, || {
            format!("its protocol version is {protocol_version}, that of this worker {PROTOCOL_VERSION}")
        })?;
        need(rank < MAX_WORKERS && wanted.is_none_or(|wanted| wanted == rank), || match wanted {
            Some(wanted) => format!("it gives rank {rank} to a worker that asked for rank {wanted}"),
            None => format!("it gives rank {rank}, ranks are below {MAX_WORKERS}"),
        })?;
        for (what, name) in [("session token", &session_token), ("run id", &run_id)] {
            need((1..=MAX_NAME_BYTES).contains(&name.len()), || {
                format!("its {what} has {} bytes, not 1 to {MAX_NAME_BYTES}", name.len())
            })?;
            need(name.bytes().all(|byte| byte.is_ascii_graphic()), || {
                format!("its {what} has other characters than visible ASCII")
            })?;
        }
        let is_sane =
            !heartbeat.is_zero() && heartbeat <= heartbeat_timeout && heartbeat_timeout <= MAX_HEARTBEAT_TIMEOUT;
        need(is_sane, || {
            let [heartbeat, heartbeat_timeout] = [heartbeat, heartbeat_timeout].map(|time| time.as_millis());
            format!(
                "it wants a heartbeat each {heartbeat} ms, and counts a connection as lost after {heartbeat_timeout} ms"
            )
        })?;
        let run = RunFile::from_json(&run_file).map_err(|problem| {
            let problem = cli_support::one_line(&problem, MAX_REASON_CHARS);
            violation(&format!("its run file does not fit this version: {problem}"))
        })?;
        Ok(Self { rank, session_token, run, run_id, heartbeat, heartbeat_timeout })
    }
}

fn need(holds: bool, problem: impl FnOnce() -> String) -> Result<(), ProtocolViolation> {
    if holds { Ok(()) } else { Err(violation(&problem())) }
}

fn violation(problem: &str) -> ProtocolViolation {
    ProtocolViolation::new(format!("in the answer to a join, {problem}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn answer() -> v1::JoinResponse {
        let run = "name: test\noutput: /nowhere\nworkers: { min: 1, max: 2 }\n\
                   data: { karpathy: { annotations: annotations.json, images: images } }\n\
                   captioner: { preset: tiny }\nevaluator: { preset: tiny }\nstages:\n  \
                   - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 0.1 } }\n";
        let run = RunFile::parse(Path::new("run.yaml"), run).unwrap();
        v1::JoinResponse {
            protocol_version: PROTOCOL_VERSION,
            rank: 1,
            session_token: "1.secret".to_owned(),
            run_file: serde_json::to_string(&run).unwrap(),
            heartbeat_interval_ms: 100,
            heartbeat_timeout_ms: 500,
            run_id: "3fa2".to_owned(),
        }
    }

    #[test]
    fn a_place_is_what_was_asked_for() {
        let place = Membership::read(answer(), Some(1)).ok().unwrap();
        assert_eq!((place.rank, place.run.stages.len(), place.run_id.as_str()), (1, 1, "3fa2"));
        assert_eq!([place.heartbeat, place.heartbeat_timeout], [100, 500].map(Duration::from_millis));
        let error = Membership::read(answer(), Some(0)).err().unwrap().to_string();
        assert!(error.contains("it gives rank 1 to a worker that asked for rank 0"), "{error}");
        let long = v1::JoinResponse { run_file: format!("{{\"{}\": 1}}", "\u{1b}x".repeat(9_999)), ..answer() };
        let error = Membership::read(long, None).err().unwrap().to_string();
        assert!(error.contains("its run file does not fit this version") && error.len() < 2_000, "{error}");
    }

    proptest! {
        #[test]
        fn whatever_is_answered_a_place_is_within_bounds(
            number: u64,
            rank: u32,
            version in PROTOCOL_VERSION..PROTOCOL_VERSION + 2,
            heartbeat in prop_oneof![0..9_u64, any::<u64>()],
            heartbeat_timeout in prop_oneof![0..9_u64, any::<u64>()],
            text in ".{0,9}",
            cut: prop::sample::Index,
            good: [bool; 6],
        ) {
            let sane = answer();
            let run_file = sane.run_file[..cut.index(sane.run_file.len())].to_owned() + &number.to_string();
            let answer = v1::JoinResponse {
                protocol_version: if good[0] { sane.protocol_version } else { version },
                rank: if good[1] { sane.rank } else { rank },
                session_token: if good[2] { sane.session_token } else { text.clone() },
                run_file: if good[3] { sane.run_file } else { run_file },
                heartbeat_interval_ms: if good[4] { sane.heartbeat_interval_ms } else { heartbeat },
                heartbeat_timeout_ms: if good[4] { sane.heartbeat_timeout_ms } else { heartbeat_timeout },
                run_id: if good[5] { sane.run_id } else { text },
            };
            match Membership::read(answer, None) {
                Ok(place) => {
                    prop_assert!(place.rank < MAX_WORKERS && !place.heartbeat.is_zero());
                    prop_assert!(place.heartbeat <= place.heartbeat_timeout && place.heartbeat_timeout <= MAX_HEARTBEAT_TIMEOUT);
                    prop_assert!(place.session_token.len() <= MAX_NAME_BYTES && place.run_id.len() <= MAX_NAME_BYTES);
                }
                Err(violation) => {
                    let violation = violation.to_string();
                    prop_assert!(violation.len() < 2_000 && !violation.contains(char::is_control), "{violation}");
                }
            }
        }
    }
}
