//! Floods of join requests: one client (the attacker) sends join requests without end, while honest
//! workers join. The honest workers must get ids.

use std::{net::IpAddr, time::Duration};

use proto::v1;

use super::{join_key::*, members::*};
use crate::{
    refusal::{Refusal, RefusalKind},
    types::{SessionId, Time, WorkerId},
};

const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);
/// Last byte of the attacker's address.
const ATTACKER: u8 = 66;

/// The membership of a run, with workers at addresses 10.0.0.x.
struct Scenario {
    members: Membership,
    settings: JoinSettings,
    /// The time, in seconds.
    now: u64,
    session_count: u64,
}

impl Scenario {
    fn new(max_workers: u32) -> Self {
        let heartbeat_interval = Duration::from_secs(1);
        let settings = JoinSettings { max_workers, heartbeat_interval, heartbeat_timeout: HEARTBEAT_TIMEOUT };
        Self { members: Membership::default(), settings, now: 0, session_count: 0 }
    }

    fn time(&self) -> Time {
        Duration::from_secs(self.now)
    }

    fn advance(&mut self, seconds: u64) {
        self.now += seconds;
        self.members.remove_expired(self.time());
    }

    /// Sends a join request from address 10.0.0.`last_byte`.
    fn request(&mut self, last_byte: u8, request: &v1::JoinRequest) -> Result<(WorkerId, String), Refusal> {
        let address = IpAddr::from([10, 0, 0, last_byte]);
        self.members.reserve(self.time(), address, request, "generated".into(), &self.settings)
    }

    /// Joins as a worker that has waited since the start.
    fn join(&mut self, last_byte: u8, worker_id: Option<u32>, join_key: &str) -> Result<(WorkerId, String), Refusal> {
        let request = v1::JoinRequest {
            worker_id,
            idempotency_key: join_key.into(),
            waited_ms: 1000 * self.now,
            device: "cuda:0".into(),
            ..Default::default()
        };
        self.request(last_byte, &request)
    }

    fn attach(&mut self, session_token: &str) -> Result<WorkerId, Refusal> {
        self.session_count += 1;
        self.members.attach(self.time(), SessionId(self.session_count), session_token, "host:1".into())
    }

    /// Joins many times from the attacker's address, each time with another join key; returns the
    /// number of reservations that it gets.
    fn flood(&mut self, times: u32) -> usize {
        let now = self.now;
        (0..times).filter(|number| self.join(ATTACKER, None, &format!("{number} at {now}")).is_ok()).count()
    }
}

fn refusal_kind<T>(answer: Result<T, Refusal>) -> Option<RefusalKind> {
    answer.err().map(|refusal| refusal.kind)
}

#[test]
fn reservations_of_one_address_are_limited() {
    let mut scenario = Scenario::new(3_000);
    assert_eq!(scenario.flood(10_000), 32);
    scenario.join(1, None, "honest").unwrap();
    let refused = scenario.join(ATTACKER, None, "one more").unwrap_err();
    assert!(refused.kind == RefusalKind::RetryLater && refused.reason.contains("10.0.0.66"), "{refused:?}");
}

#[test]
fn a_reservation_without_renewal_ends_within_seconds() {
    let mut scenario = Scenario::new(8);
    scenario.flood(8);
    scenario.advance(10);
    assert_eq!(scenario.join(1, Some(3), "honest").unwrap().0, WorkerId(3));
    // Rare heartbeats mean rare renewals.
    scenario.settings.heartbeat_interval = Duration::from_secs(9);
    scenario.advance(10);
    scenario.join(1, Some(3), "honest").unwrap();
    scenario.advance(44);
    assert_eq!(refusal_kind(scenario.join(2, Some(3), "other")), Some(RefusalKind::RetryLater));
    scenario.advance(1);
    assert_eq!(scenario.join(2, Some(3), "other").unwrap().0, WorkerId(3));
}

#[test]
fn unassigned_ids_go_to_waiting_workers_first() {
    let mut scenario = Scenario::new(3);
    assert_eq!(scenario.flood(3), 3);
    for (last_byte, join_key) in [(1, "first"), (2, "second")] {
        assert_eq!(refusal_kind(scenario.join(last_byte, None, join_key)), Some(RefusalKind::RetryLater));
    }
    scenario.advance(10);
    // Two of the three unassigned ids are kept for the waiting workers.
    assert_eq!(scenario.flood(1_000), 1);
    assert_eq!(scenario.join(3, None, "third").unwrap_err().kind, RefusalKind::RetryLater);
    scenario.join(2, None, "second").unwrap();
    scenario.join(1, None, "first").unwrap();
}

#[test]
fn no_id_is_kept_for_a_worker_that_stopped_retrying() {
    let mut scenario = Scenario::new(1);
    scenario.join(1, None, "holder").unwrap();
    assert_eq!(refusal_kind(scenario.join(2, None, "stops retrying")), Some(RefusalKind::RetryLater));
    scenario.advance(10);
    assert_eq!(refusal_kind(scenario.join(3, None, "next")), Some(RefusalKind::RetryLater));
    scenario.advance(5);
    scenario.join(3, None, "next").unwrap();
}

#[test]
fn an_unassigned_id_goes_to_the_worker_that_waits_for_it() {
    let mut scenario = Scenario::new(100);
    let (_, session_token) = scenario.join(1, Some(0), "first process").unwrap();
    scenario.attach(&session_token).unwrap();
    scenario.advance(1);
    // The worker restarts; the coordinator has not noticed yet that its connection broke.
    assert_eq!(refusal_kind(scenario.join(1, Some(0), "second process")), Some(RefusalKind::RetryLater));
    scenario.members.remove(WorkerId(0));
    assert_eq!(refusal_kind(scenario.join(ATTACKER, Some(0), "id 0")), Some(RefusalKind::RetryLater));
    assert_eq!(scenario.join(ATTACKER, None, "any id").unwrap().0, WorkerId(1));
    assert_eq!(scenario.join(1, Some(0), "second process").unwrap().0, WorkerId(0));
}

#[test]
fn a_reservation_is_not_renewed_forever_while_others_wait() {
    let mut scenario = Scenario::new(2);
    let attack = |scenario: &mut Scenario, join_key: &str| scenario.join(ATTACKER, None, join_key).is_ok();
    assert!(attack(&mut scenario, "a") && attack(&mut scenario, "b"));
    let mut joined = None;
    while joined.is_none() && scenario.now < 600 {
        scenario.advance(1);
        // The attacker joins before the honest worker, with its old join keys and with new ones.
        attack(&mut scenario, "a");
        attack(&mut scenario, "b");
        scenario.flood(10);
        if scenario.now.is_multiple_of(5) {
            joined = scenario
                .join(1, None, "honest")
                .map_err(|refusal| assert_eq!(refusal.kind, RefusalKind::RetryLater))
                .ok();
        }
    }
    let (_, session_token) = joined.expect("it gets an id");
    assert!(scenario.now <= 305, "after {} s", scenario.now);
    scenario.attach(&session_token).unwrap();
}

#[test]
fn a_reservation_is_renewed_while_no_other_worker_waits() {
    let mut scenario = Scenario::new(2);
    let (worker_id, session_token) = scenario.join(1, None, "loads slowly").unwrap();
    for _ in 0..2_000 {
        scenario.advance(1);
        assert_eq!(scenario.join(1, Some(worker_id.0), "loads slowly").unwrap(), (worker_id, session_token.clone()));
    }
    scenario.attach(&session_token).unwrap();
}

#[test]
fn no_join_is_refused_permanently_because_of_a_reservation() {
    let mut scenario = Scenario::new(2);
    let request_with_device = |device: &str, join_key: &str, worker_id| v1::JoinRequest {
        worker_id,
        device: device.into(),
        idempotency_key: join_key.into(),
        waited_ms: 60_000,
        ..Default::default()
    };
    let other_device = request_with_device("tpu:0", "attacker", Some(0));
    scenario.request(ATTACKER, &other_device).unwrap();
    // The device of a reservation does not determine the device type of the run.
    let (worker_id, session_token) = scenario.join(1, None, "honest").unwrap();
    // The attacker's id 0, and the honest worker's id 1, may become unassigned again.
    assert_eq!(refusal_kind(scenario.join(1, Some(0), "requests id 0")), Some(RefusalKind::RetryLater));
    assert_eq!(refusal_kind(scenario.join(1, None, "requests any id")), Some(RefusalKind::RetryLater));
    assert_eq!(scenario.attach(&session_token), Ok(worker_id));
    // A worker with another type of device that is already loading is refused when it attaches, not
    // earlier, because workers ignore the answers to renewals of their reservation.
    scenario.request(ATTACKER, &other_device).unwrap();
    assert_eq!(refusal_kind(scenario.attach("0.attacker")), Some(RefusalKind::DeviceMismatch));
    assert_eq!(scenario.join(1, Some(0), "requests id 0").unwrap().0, WorkerId(0));
}

#[test]
fn all_workers_of_a_machine_can_load_at_the_same_time() {
    let mut scenario = Scenario::new(16);
    let session_tokens: Vec<String> =
        (0..16).map(|gpu| scenario.join(1, None, &format!("gpu {gpu}")).unwrap().1).collect();
    session_tokens.iter().for_each(|session_token| _ = scenario.attach(session_token).unwrap());
    assert_eq!(
        refusal_kind(scenario.join(2, None, "one too many")),
        Some(RefusalKind::RetryLater),
        "the members may have died"
    );
    scenario.advance(60);
    let now = scenario.time();
    scenario.members.members.values_mut().for_each(|member| member.last_message_at = now);
    assert_eq!(refusal_kind(scenario.join(2, None, "one too many")), Some(RefusalKind::ResourceExhausted));
}

#[test]
fn all_workers_behind_one_proxy_are_admitted() {
    let mut scenario = Scenario::new(100);
    let mut waiting: Vec<u32> = (0..100).collect();
    for _ in 0..4 {
        let mut session_tokens = Vec::new();
        waiting.retain(|worker| match scenario.join(1, None, &format!("worker {worker}")) {
            Ok((_, session_token)) => {
                session_tokens.push(session_token);
                false
            }
            Err(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::RetryLater);
                true
            }
        });
        session_tokens.iter().for_each(|session_token| _ = scenario.attach(session_token).unwrap());
        scenario.advance(5);
    }
    assert!(waiting.is_empty(), "{waiting:?}");
}
