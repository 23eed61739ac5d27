//! Joins, reservations and stalls of a few workers.

use std::{net::IpAddr, time::Duration};

use proto::v1;

use super::{join_key::*, members::*, *};
use crate::{
    refusal::{Refusal, RefusalKind},
    types::{SessionId, Time, WorkerId},
};

const SETTINGS: JoinSettings = JoinSettings {
    max_workers: 3,
    heartbeat_interval: Duration::from_secs(1),
    heartbeat_timeout: Duration::from_secs(10),
};

const LOCALHOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

fn request(worker_id: Option<u32>, host: &str) -> v1::JoinRequest {
    v1::JoinRequest { worker_id, host: host.into(), ..Default::default() }
}

/// The request of a worker, identified by its join key, that has waited for `waited_seconds`.
fn join(worker_id: Option<u32>, join_key: &str, waited_seconds: u64) -> v1::JoinRequest {
    v1::JoinRequest {
        idempotency_key: join_key.into(),
        waited_ms: 1000 * waited_seconds,
        ..request(worker_id, "node-a")
    }
}

fn reserve(members: &mut Membership, now: u64, request: &v1::JoinRequest) -> Result<(WorkerId, String), Refusal> {
    members.reserve(Duration::from_secs(now), LOCALHOST, request, "generated".into(), &SETTINGS)
}

fn attach(members: &mut Membership, now: u64, session: u64, session_token: &str) -> Result<WorkerId, Refusal> {
    members.attach(Duration::from_secs(now), SessionId(session), session_token, "node-a:1".into())
}

#[test]
fn names_with_control_characters_are_refused() {
    let mut members = Membership::default();
    for name in ["node\u{1b}[2J", "node\nworker 3 failed", "node\u{9b}1m", "node\0"] {
        let requests = [
            v1::JoinRequest { host: name.into(), ..Default::default() },
            v1::JoinRequest { version: name.into(), ..Default::default() },
            v1::JoinRequest { device: name.into(), ..Default::default() },
        ];
        for request in requests {
            let kind = reserve(&mut members, 0, &request).unwrap_err().kind;
            assert_eq!(kind, RefusalKind::InvalidArgument, "{name:?}");
        }
        let (_, session_token) = reserve(&mut members, 0, &v1::JoinRequest::default()).unwrap();
        let attached = members.attach(Time::ZERO, SessionId(1), &session_token, format!("{name}:1"));
        assert_eq!(attached.unwrap_err().kind, RefusalKind::InvalidArgument, "{name:?}");
        members = Membership::default();
    }
}

#[test]
fn the_lowest_unassigned_id_is_assigned_first() {
    let mut members = Membership::default();
    let mut reserve = |worker_id, join_key: &str| {
        members.reserve(Time::ZERO, LOCALHOST, &request(worker_id, "a"), join_key.into(), &SETTINGS)
    };
    assert_eq!(reserve(Some(1), "t1"), Ok((WorkerId(1), "1.t1".into())));
    assert_eq!(reserve(None, "t0"), Ok((WorkerId(0), "0.t0".into())));
    assert_eq!(reserve(None, "t2"), Ok((WorkerId(2), "2.t2".into())));
    assert_eq!(reserve(None, "t3").unwrap_err().kind, RefusalKind::RetryLater);
}

#[test]
fn a_worker_that_is_loading_keeps_its_id() {
    let mut members = Membership::default();
    let (worker_id, session_token) = reserve(&mut members, 0, &join(Some(4), "first", 0)).unwrap();
    assert_eq!((worker_id, session_token.as_str()), (WorkerId(4), "4.first"));
    // A second worker on the same host requests the same id, for example because a shell loop
    // starts several workers with one id.
    let refused = reserve(&mut members, 0, &join(Some(4), "second", 0)).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::RetryLater);
    assert!(refused.reason.contains("worker id 4 is taken") && refused.reason.contains("node-a"), "{refused:?}");
    assert_eq!(attach(&mut members, 0, 1, "4.second").unwrap_err().kind, RefusalKind::Unauthenticated);
    // The first worker renews its reservation while it loads. The second worker waits until the
    // first one is a member.
    for now in 1..=3 {
        assert_eq!(reserve(&mut members, now, &join(Some(4), "first", 0)), Ok((WorkerId(4), session_token.clone())));
    }
    let refused = reserve(&mut members, 3, &join(Some(4), "second", 3)).unwrap_err();
    assert!(refused.kind == RefusalKind::RetryLater && refused.reason.contains("is loading"), "{refused:?}");
    assert_eq!(attach(&mut members, 4, 1, &session_token), Ok(WorkerId(4)));
    let refused = reserve(&mut members, 4, &join(Some(4), "second", 4)).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::AlreadyExists);
    // A session token works once.
    assert_eq!(attach(&mut members, 4, 2, &session_token).unwrap_err().kind, RefusalKind::Unauthenticated);
}

#[test]
fn a_worker_waits_for_an_id_until_its_holder_is_proved_alive_or_removed() {
    let mut members = Membership::default();
    let session_token = reserve(&mut members, 0, &join(Some(4), "holder", 0)).unwrap().1;
    attach(&mut members, 0, 1, &session_token).unwrap();
    let join_again = |members: &mut Membership, now, waited| {
        reserve(members, now, &join(Some(4), "other", waited)).map_err(|refusal| (refusal.kind, refusal.reason))
    };
    let receive_message = |members: &mut Membership, now| {
        members.get_mut(WorkerId(4)).unwrap().last_message_at = Duration::from_secs(now);
    };
    receive_message(&mut members, 20);
    // The holder may have died a moment ago.
    assert_eq!(join_again(&mut members, 20, 0).unwrap_err().0, RefusalKind::RetryLater);
    // A message within one heartbeat interval may have been in transit when the holder died.
    assert_eq!(join_again(&mut members, 21, 1).unwrap_err().0, RefusalKind::RetryLater);
    let (kind, reason) = join_again(&mut members, 29, 9).unwrap_err();
    assert_eq!(kind, RefusalKind::RetryLater);
    assert!(reason.contains("last message 9.0 s ago") && reason.contains("after 10 s without one"), "{reason}");
    receive_message(&mut members, 29);
    let (kind, reason) = join_again(&mut members, 30, 10).unwrap_err();
    assert_eq!(kind, RefusalKind::AlreadyExists);
    assert!(reason.contains("worker id 4 is taken") && reason.contains("node-a"), "{reason}");
    // A leaving holder sends messages until it is removed.
    members.mark_leaving(WorkerId(4), "requested".into());
    assert_eq!(join_again(&mut members, 30, 10).unwrap_err().0, RefusalKind::RetryLater);
    members.remove(WorkerId(4));
    assert_eq!(join_again(&mut members, 31, 11).unwrap().0, WorkerId(4));
}

#[test]
fn a_worker_waits_for_a_place_in_a_full_run_while_a_member_may_be_dead() {
    let mut members = Membership::default();
    for number in 0..3 {
        let session_token = reserve(&mut members, 0, &join(None, &format!("holder {number}"), 0)).unwrap().1;
        attach(&mut members, 0, number, &session_token).unwrap();
    }
    let receive_messages = |members: &mut Membership, ids: &[u32], now| {
        ids.iter().for_each(|id| members.get_mut(WorkerId(*id)).unwrap().last_message_at = Duration::from_secs(now));
    };
    let join_again = |members: &mut Membership, worker_id, now, waited| {
        reserve(members, now, &join(worker_id, "other", waited)).unwrap_err().kind
    };
    receive_messages(&mut members, &[0, 1], 8);
    for worker_id in [None, Some(7)] {
        assert_eq!(join_again(&mut members, worker_id, 8, 5), RefusalKind::RetryLater);
    }
    receive_messages(&mut members, &[0, 1, 2], 8);
    for worker_id in [None, Some(7)] {
        assert_eq!(join_again(&mut members, worker_id, 8, 5), RefusalKind::ResourceExhausted);
    }
}

#[test]
fn a_repeated_join_request_gets_the_same_id() {
    let mut members = Membership::default();
    let first = reserve(&mut members, 0, &join(None, "key", 0)).unwrap();
    assert_eq!(reserve(&mut members, 1, &join(None, "key", 0)), Ok(first.clone()));
    assert_eq!(reserve(&mut members, 2, &join(Some(first.0.0), "key", 0)), Ok(first));
    assert_eq!(reserve(&mut members, 2, &join(None, "another", 0)).unwrap().0, WorkerId(1));
}

#[test]
fn all_members_have_the_same_type_of_device() {
    let mut members = Membership::default();
    let reserve = |members: &mut Membership, worker_id, device: &str, join_key: &str, waited_ms| {
        let request = v1::JoinRequest { device: device.into(), waited_ms, ..request(worker_id, "node-a") };
        members.reserve(Time::ZERO, LOCALHOST, &request, join_key.into(), &SETTINGS)
    };
    // The first worker was started by mistake, and is replaced.
    reserve(&mut members, Some(0), "cpu", "first", 0).unwrap();
    attach(&mut members, 0, 1, "0.first").unwrap();
    assert_eq!(reserve(&mut members, None, "cuda:0", "second", 0).unwrap_err().kind, RefusalKind::RetryLater);
    members.remove(WorkerId(0));
    reserve(&mut members, Some(0), "cuda:0", "second", 0).unwrap();
    // Both workers load; the worker that attaches first determines the device type of the run.
    reserve(&mut members, Some(1), "cpu", "another", 0).unwrap();
    attach(&mut members, 0, 2, "0.second").unwrap();
    assert_eq!(attach(&mut members, 0, 3, "1.another").unwrap_err().kind, RefusalKind::DeviceMismatch);
    let third = reserve(&mut members, None, "cuda:1", "third", 0).unwrap().0;
    assert_eq!(third, WorkerId(1), "the refused worker has lost its reservation");
    let refused = reserve(&mut members, None, "cpu", "fourth", 5000).unwrap_err();
    assert_eq!(refused.kind, RefusalKind::DeviceMismatch);
    let names = ["cpu", "worker 0 on node-a", "cuda:0"];
    assert!(names.iter().all(|name| refused.reason.contains(name)), "{refused:?}");
}

#[test]
fn reservations_that_are_not_renewed_expire() {
    let mut members = Membership::default();
    reserve(&mut members, 0, &join(Some(0), "loads", 0)).unwrap();
    reserve(&mut members, 0, &join(Some(1), "dies", 0)).unwrap();
    reserve(&mut members, 9, &join(Some(0), "loads", 0)).unwrap();
    members.remove_expired(Duration::from_secs(10));
    assert_eq!(reserve(&mut members, 10, &join(Some(0), "other", 0)).unwrap_err().kind, RefusalKind::RetryLater);
    assert_eq!(reserve(&mut members, 10, &join(Some(1), "other", 0)).unwrap().0, WorkerId(1));
}

#[test]
fn a_member_without_progress_stalls_only_if_others_wait() {
    let mut members = Membership::default();
    for id in 0..2 {
        let joined = members.reserve(Time::ZERO, LOCALHOST, &request(Some(id), "a"), "t".into(), &SETTINGS);
        members.attach(Time::ZERO, SessionId(id.into()), &joined.unwrap().1, "a:1".into()).unwrap();
    }
    let (now, timeout) = (Duration::from_secs(40), Duration::from_secs(30));
    let is_in_all_reduce = |member: &Member| member.phase == v1::Phase::AllReduce;
    let mut stall_after_heartbeat = |id: u32, seconds, phase| {
        let member = members.get_mut(WorkerId(id)).unwrap();
        member.record_heartbeat(Duration::from_secs(seconds), phase, None);
        members.find_stall(now, timeout, timeout, is_in_all_reduce, |_| true)
    };
    let stalled = |id| Some(Stall::Members(vec![WorkerId(id)]));
    stall_after_heartbeat(0, 1, v1::Phase::Compute);
    assert_eq!(stall_after_heartbeat(1, 1, v1::Phase::Compute), None, "both compute for long");
    assert_eq!(stall_after_heartbeat(1, 35, v1::Phase::AllReduce), stalled(0));
    assert_eq!(stall_after_heartbeat(0, 36, v1::Phase::Load), None, "it made progress");
    stall_after_heartbeat(0, 2, v1::Phase::AllReduce);
    assert_eq!(stall_after_heartbeat(1, 3, v1::Phase::Idle), stalled(1), "it has not even begun");
    let is_first = |worker_id| worker_id == WorkerId(0);
    assert_eq!(members.find_stall(now, timeout, timeout, is_in_all_reduce, is_first), Some(Stall::AllMembers));
    let member = members.get_mut(WorkerId(1)).unwrap();
    member.record_heartbeat(Duration::from_secs(4), v1::Phase::AllReduce, None);
    assert_eq!(members.find_stall(now, timeout, timeout, is_in_all_reduce, |_| true), Some(Stall::AllMembers));
    members.reset_stall_timers(now, is_first);
    let stall = members.find_stall(now, timeout, timeout, is_in_all_reduce, |_| true);
    assert_eq!(stall, None, "the second member had no pending directive until now");
}
