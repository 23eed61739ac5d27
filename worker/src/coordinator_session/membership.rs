//! Validation of the coordinator's response to a join.

use std::time::Duration;

use config::{MAX_WORKERS, RunFile};
use proto::{PROTOCOL_VERSION, v1};
use worker_protocol::ProtocolViolation;

use super::coordinator_client::MAX_REASON_CHARS;

/// Maximal length of the session token and of the run's id, in bytes. The token has the worker id
/// and the idempotency key of the join, which the coordinator limits to 512 bytes.
const MAX_TOKEN_BYTES: usize = 1_024;
/// Maximal heartbeat timeout: the limit of the run file, 30 days.
const MAX_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(2_592_000);

/// The settings of a worker's membership in a run.
pub struct Membership {
    /// The worker id.
    pub worker_id: u32,
    /// The secret with which the worker opens a session.
    pub session_token: String,
    /// The run file.
    pub run: RunFile,
    /// The run's id.
    pub run_id: String,
    /// The interval at which the worker sends heartbeats.
    pub heartbeat_interval: Duration,
    /// The heartbeat timeout: a connection without messages for this long counts as lost.
    pub heartbeat_timeout: Duration,
}

impl Membership {
    /// Validates the response to a request for `requested_id`, or for any id.
    ///
    /// # Errors
    /// A field is invalid; the error names it.
    pub fn from_response(response: v1::JoinResponse, requested_id: Option<u32>) -> Result<Self, ProtocolViolation> {
        let v1::JoinResponse { protocol_version, worker_id, session_token, run_file, run_id, .. } = response;
        let [heartbeat_interval, heartbeat_timeout] =
            [response.heartbeat_interval_ms, response.heartbeat_timeout_ms].map(Duration::from_millis);
        ensure(protocol_version == PROTOCOL_VERSION, || {
            format!("the protocol version is {protocol_version}, but this worker has {PROTOCOL_VERSION}")
        })?;
        ensure(worker_id < MAX_WORKERS && requested_id.is_none_or(|id| id == worker_id), || match requested_id {
            Some(id) => format!("the worker id is {worker_id}, but this worker requested {id}"),
            None => format!("the worker id is {worker_id}, but worker ids are below {MAX_WORKERS}"),
        })?;
        for (name, text) in [("session token", &session_token), ("run id", &run_id)] {
            ensure((1..=MAX_TOKEN_BYTES).contains(&text.len()), || {
                format!("the {name} has {} bytes, not 1 to {MAX_TOKEN_BYTES}", text.len())
            })?;
            ensure(text.bytes().all(|byte| byte.is_ascii_graphic()), || {
                format!("the {name} has other characters than visible ASCII")
            })?;
        }
        let is_valid_heartbeat = !heartbeat_interval.is_zero()
            && heartbeat_interval <= heartbeat_timeout
            && heartbeat_timeout <= MAX_HEARTBEAT_TIMEOUT;
        ensure(is_valid_heartbeat, || {
            let [interval, timeout] = [heartbeat_interval, heartbeat_timeout].map(|time| time.as_millis());
            format!("the heartbeat interval is {interval} ms and the heartbeat timeout {timeout} ms")
        })?;
        let run = RunFile::from_json(&run_file).map_err(|error| {
            let problem = cli_support::one_line(&error.to_string(), MAX_REASON_CHARS);
            violation(&format!("this version of the worker cannot read the run file: {problem}"))
        })?;
        Ok(Self { worker_id, session_token, run, run_id, heartbeat_interval, heartbeat_timeout })
    }
}

/// Fails with the description of a violation unless `condition` is true.
fn ensure(condition: bool, description: impl FnOnce() -> String) -> Result<(), ProtocolViolation> {
    if condition { Ok(()) } else { Err(violation(&description())) }
}

fn violation(description: &str) -> ProtocolViolation {
    ProtocolViolation::new(format!("in the response to a join, {description}"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn valid_response() -> v1::JoinResponse {
        let run = "name: test\noutput: /nowhere\nworkers: { min: 1, max: 2 }\n\
                   data: { karpathy: { annotations: annotations.json, images: images } }\n\
                   captioner: { preset: tiny }\nevaluator: { preset: tiny }\nstages:\n  \
                   - { name: xe, objective: cross_entropy, steps: 9, batch: 4, optimizer: { learning_rate: 0.1 } }\n";
        let run = RunFile::parse(Path::new("run.yaml"), run).unwrap();
        v1::JoinResponse {
            protocol_version: PROTOCOL_VERSION,
            worker_id: 1,
            session_token: "1.secret".to_owned(),
            run_file: serde_json::to_string(&run).unwrap(),
            heartbeat_interval_ms: 100,
            heartbeat_timeout_ms: 500,
            run_id: "3fa2".to_owned(),
        }
    }

    #[test]
    fn a_response_with_another_worker_id_or_an_invalid_run_file_is_refused() {
        let membership = Membership::from_response(valid_response(), Some(1)).ok().unwrap();
        assert_eq!((membership.worker_id, membership.run.stages.len(), membership.run_id.as_str()), (1, 1, "3fa2"));
        let heartbeats = [membership.heartbeat_interval, membership.heartbeat_timeout];
        assert_eq!(heartbeats, [100, 500].map(Duration::from_millis));
        let error = Membership::from_response(valid_response(), Some(0)).err().unwrap().to_string();
        assert!(error.contains("the worker id is 1, but this worker requested 0"), "{error}");
        let run_file = format!("{{\"{}\": 1}}", "\u{1b}x".repeat(9_999));
        let error = Membership::from_response(v1::JoinResponse { run_file, ..valid_response() }, None);
        let error = error.err().unwrap().to_string();
        assert!(error.contains("cannot read the run file") && error.len() < 2_000, "{error}");
    }

    proptest! {
        #[test]
        fn accepted_responses_are_within_the_limits(
            number: u64,
            worker_id: u32,
            protocol_version in PROTOCOL_VERSION..PROTOCOL_VERSION + 2,
            heartbeat_interval in prop_oneof![0..9_u64, any::<u64>()],
            heartbeat_timeout in prop_oneof![0..9_u64, any::<u64>()],
            text in ".{0,9}",
            cut: prop::sample::Index,
            is_valid: [bool; 6],
        ) {
            let valid = valid_response();
            let run_file = valid.run_file[..cut.index(valid.run_file.len())].to_owned() + &number.to_string();
            let response = v1::JoinResponse {
                protocol_version: if is_valid[0] { valid.protocol_version } else { protocol_version },
                worker_id: if is_valid[1] { valid.worker_id } else { worker_id },
                session_token: if is_valid[2] { valid.session_token } else { text.clone() },
                run_file: if is_valid[3] { valid.run_file } else { run_file },
                heartbeat_interval_ms: if is_valid[4] { valid.heartbeat_interval_ms } else { heartbeat_interval },
                heartbeat_timeout_ms: if is_valid[4] { valid.heartbeat_timeout_ms } else { heartbeat_timeout },
                run_id: if is_valid[5] { valid.run_id } else { text },
            };
            match Membership::from_response(response, None) {
                Ok(Membership { worker_id, session_token, run_id, heartbeat_interval, heartbeat_timeout, .. }) => {
                    prop_assert!(worker_id < MAX_WORKERS && !heartbeat_interval.is_zero());
                    prop_assert!(heartbeat_interval <= heartbeat_timeout && heartbeat_timeout <= MAX_HEARTBEAT_TIMEOUT);
                    prop_assert!(session_token.len() <= MAX_TOKEN_BYTES && run_id.len() <= MAX_TOKEN_BYTES);
                }
                Err(violation) => {
                    let violation = violation.to_string();
                    prop_assert!(violation.len() < 2_000 && !violation.contains(char::is_control), "{violation}");
                }
            }
        }
    }
}
