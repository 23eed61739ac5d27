//! Attacks on places: one client asks for places without end, while honest workers join.

use super::*;

const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);
/// Last byte of the attacker's address.
const ATTACKER: u8 = 66;

/// The membership of a run, with workers at addresses 10.0.0.x.
struct Places {
    members: Membership,
    terms: Terms,
    now: u64,
    sessions: u64,
}

impl Places {
    fn new(max_workers: u32) -> Self {
        let terms = Terms { max_workers, heartbeat: Duration::from_secs(1), heartbeat_timeout: HEARTBEAT_TIMEOUT };
        Self { members: Membership::default(), terms, now: 0, sessions: 0 }
    }

    fn time(&self) -> Time {
        Duration::from_secs(self.now)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds;
        self.members.expire(self.time());
    }

    fn request(&mut self, from: u8, request: &v1::JoinRequest) -> Result<(u32, String), Refusal> {
        let address = IpAddr::from([10, 0, 0, from]);
        self.members.reserve(self.time(), address, request, "token".into(), &self.terms)
    }

    /// Joins as a worker that has waited since the start.
    fn ask(&mut self, from: u8, rank: Option<u32>, key: &str) -> Result<(u32, String), Refusal> {
        let request = v1::JoinRequest {
            rank,
            idempotency_key: key.into(),
            waited_ms: 1000 * self.now,
            device: "cuda:0".into(),
            ..Default::default()
        };
        self.request(from, &request)
    }

    fn attach(&mut self, token: &str) -> Result<u32, Refusal> {
        self.sessions += 1;
        self.members.attach(self.time(), SessionId(self.sessions), token, "host:1".into())
    }

    /// Joins many times from the attacker's address, each time with another key; returns the number
    /// of places granted.
    fn flood(&mut self, times: u32) -> usize {
        let now = self.now;
        (0..times).filter(|number| self.ask(ATTACKER, None, &format!("{number} at {now}")).is_ok()).count()
    }
}

fn kind<T>(answer: Result<T, Refusal>) -> Option<RefusalKind> {
    answer.err().map(|refusal| refusal.kind)
}

#[test]
fn reservations_of_one_address_are_limited() {
    let mut places = Places::new(3_000);
    assert_eq!(places.flood(10_000), 32);
    places.ask(1, None, "honest").unwrap();
    let held = places.ask(ATTACKER, None, "one more").unwrap_err();
    assert!(held.kind == RefusalKind::Held && held.reason.contains("10.0.0.66"), "{held:?}");
}

#[test]
fn a_reservation_without_renewal_ends_within_seconds() {
    let mut places = Places::new(8);
    places.flood(8);
    places.pass(10);
    assert_eq!(places.ask(1, Some(3), "honest").unwrap().0, 3);
    // Rare heartbeats mean rare renewals.
    places.terms.heartbeat = Duration::from_secs(9);
    places.pass(10);
    places.ask(1, Some(3), "honest").unwrap();
    places.pass(44);
    assert_eq!(kind(places.ask(2, Some(3), "other")), Some(RefusalKind::Held));
    places.pass(1);
    assert_eq!(places.ask(2, Some(3), "other").unwrap().0, 3);
}

#[test]
fn free_places_go_to_waiting_workers_first() {
    let mut places = Places::new(3);
    assert_eq!(places.flood(3), 3);
    for (from, key) in [(1, "first"), (2, "second")] {
        assert_eq!(kind(places.ask(from, None, key)), Some(RefusalKind::Held));
    }
    places.pass(10);
    // Two of the three free places are kept for the waiting workers.
    assert_eq!(places.flood(1_000), 1);
    assert_eq!(places.ask(3, None, "third").unwrap_err().kind, RefusalKind::Held);
    places.ask(2, None, "second").unwrap();
    places.ask(1, None, "first").unwrap();
}

#[test]
fn no_place_is_kept_for_a_worker_that_stopped_asking() {
    let mut places = Places::new(1);
    places.ask(1, None, "holder").unwrap();
    assert_eq!(kind(places.ask(2, None, "gone")), Some(RefusalKind::Held));
    places.pass(10);
    assert_eq!(kind(places.ask(3, None, "next")), Some(RefusalKind::Held));
    places.pass(5);
    places.ask(3, None, "next").unwrap();
}

#[test]
fn a_free_rank_goes_to_the_worker_that_waits_for_it() {
    let mut places = Places::new(100);
    let (_, token) = places.ask(1, Some(0), "first life").unwrap();
    places.attach(&token).unwrap();
    places.pass(1);
    // Its connection broke, which the coordinator has not noticed yet.
    assert_eq!(kind(places.ask(1, Some(0), "second life")), Some(RefusalKind::Held));
    places.members.remove(0);
    assert_eq!(kind(places.ask(ATTACKER, Some(0), "rank")), Some(RefusalKind::Held));
    assert_eq!(places.ask(ATTACKER, None, "any").unwrap().0, 1);
    assert_eq!(places.ask(1, Some(0), "second life").unwrap().0, 0);
}

#[test]
fn a_reservation_is_not_renewed_for_ever_while_others_wait() {
    let mut places = Places::new(2);
    let attack = |places: &mut Places, key: &str| places.ask(ATTACKER, None, key).is_ok();
    assert!(attack(&mut places, "a") && attack(&mut places, "b"));
    let mut joined = None;
    while joined.is_none() && places.now < 600 {
        places.pass(1);
        // The attacker asks before the honest worker, with its old keys and with new ones.
        attack(&mut places, "a");
        attack(&mut places, "b");
        places.flood(10);
        if places.now.is_multiple_of(5) {
            joined = places.ask(1, None, "honest").map_err(|refusal| assert_eq!(refusal.kind, RefusalKind::Held)).ok();
        }
    }
    let (_, token) = joined.expect("it gets a place");
    assert!(places.now <= 305, "after {} s", places.now);
    places.attach(&token).unwrap();
}

#[test]
fn a_reservation_is_renewed_for_as_long_as_no_other_worker_waits() {
    let mut places = Places::new(2);
    let (rank, token) = places.ask(1, None, "slow").unwrap();
    for _ in 0..2_000 {
        places.pass(1);
        assert_eq!(places.ask(1, Some(rank), "slow").unwrap(), (rank, token.clone()));
    }
    places.attach(&token).unwrap();
}

#[test]
fn no_join_is_refused_for_good_because_of_a_reservation() {
    let mut places = Places::new(2);
    let device = |device: &str, key: &str, rank| v1::JoinRequest {
        rank,
        device: device.into(),
        idempotency_key: key.into(),
        waited_ms: 60_000,
        ..Default::default()
    };
    let foreign = device("tpu:0", "attacker", Some(0));
    places.request(ATTACKER, &foreign).unwrap();
    // The device of a reservation does not determine the kind of the run.
    let (rank, token) = places.ask(1, None, "honest").unwrap();
    // Its rank, and the last place of the run, may become free again.
    assert_eq!(kind(places.ask(1, Some(0), "wants rank 0")), Some(RefusalKind::Held));
    assert_eq!(kind(places.ask(1, None, "wants any rank")), Some(RefusalKind::Held));
    assert_eq!(places.attach(&token), Ok(rank));
    // A worker that loads hears of the conflict when it attaches, because workers ignore answers to
    // renewals.
    places.request(ATTACKER, &foreign).unwrap();
    assert_eq!(kind(places.attach("0.attacker")), Some(RefusalKind::OtherDevice));
    assert_eq!(places.ask(1, Some(0), "wants rank 0").unwrap().0, 0);
}

#[test]
fn all_workers_of_a_machine_load_at_once() {
    let mut places = Places::new(16);
    let tokens: Vec<String> = (0..16).map(|gpu| places.ask(1, None, &format!("gpu {gpu}")).unwrap().1).collect();
    tokens.iter().for_each(|token| _ = places.attach(token).unwrap());
    assert_eq!(kind(places.ask(2, None, "one too many")), Some(RefusalKind::Held), "they may have died");
    places.pass(60);
    let now = places.time();
    places.members.members.values_mut().for_each(|member| member.heard = now);
    assert_eq!(kind(places.ask(2, None, "one too many")), Some(RefusalKind::ResourceExhausted));
}

#[test]
fn all_workers_behind_one_proxy_come_in() {
    let mut places = Places::new(100);
    let mut waiting: Vec<u32> = (0..100).collect();
    for _ in 0..4 {
        let mut tokens = Vec::new();
        waiting.retain(|worker| match places.ask(1, None, &format!("worker {worker}")) {
            Ok((_, token)) => {
                tokens.push(token);
                false
            }
            Err(refusal) => {
                assert_eq!(refusal.kind, RefusalKind::Held);
                true
            }
        });
        tokens.iter().for_each(|token| _ = places.attach(token).unwrap());
        places.pass(5);
    }
    assert!(waiting.is_empty(), "{waiting:?}");
}
