//! Peers that claim states that they do not hold.

use std::collections::BTreeSet;

use proto::{PROTOCOL_VERSION, v1, v1::worker_message::Message};

use super::admitted;
use crate::run::{
    Action, Event, RefusalKind, RequestId, Run, SessionId, Time,
    plan::{Boundary, Place},
    record::RestoredRun,
    simulation::HERE,
    terms::TermLog,
    testing,
};

const RUN_ID: &str = "3fa2";
/// The term of the coordinator before.
const TERM: u64 = 12;

fn restored(last_generation: u64, step: u64) -> RestoredRun {
    let committed = Place { stage: 0, step };
    let done = [(Place { stage: 0, step: 10 }, Boundary::Evaluation)].into_iter().filter(|_| step >= 10).collect();
    let mut terms = TermLog::default();
    (1..=last_generation).for_each(|generation| terms.record(generation, TERM));
    RestoredRun { run_id: RUN_ID.into(), last_generation, terms, committed, done, ..RestoredRun::default() }
}

/// A run whose first stage is evaluated every ten steps, resumed from there.
fn run(restored: RestoredRun) -> Run {
    let stages = vec![testing::stage("a", 50, 8, None, Some(10)), testing::stage("b", 50, 8, None, None)];
    Run::new(testing::run_file(stages), restored, TERM + 1)
}

/// Joins with these claims. Returns the kind of the refusal, if it is refused.
fn enter(run: &mut Run, session: u64, claims: v1::Attach) -> Option<RefusalKind> {
    let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
    let token = format!("token {session}");
    let event = Event::Join { request: RequestId(0), address: HERE, token, join };
    let session_token = admitted(&run.on_event(Time::ZERO, event));
    let data_set = Some(v1::DataSet::default());
    let attach = v1::Attach { session_token, store_address: "host:1".into(), data_set, ..claims };
    let actions = run.on_event(Time::ZERO, Event::Attach { session: SessionId(session), attach });
    refusal(&actions)
}

fn refusal(actions: &[Action]) -> Option<RefusalKind> {
    actions.iter().find_map(|action| match action {
        Action::Close { refusal: Some(refusal), .. } => Some(refusal.kind),
        _ => None,
    })
}

fn holding(run_id: &str, stage: u32, step: u64, generation: u64) -> v1::Attach {
    let holds = Some(v1::Position { stage, step, generation });
    v1::Attach { run_id: run_id.into(), generation, term: TERM, holds, ..Default::default() }
}

#[test]
fn a_new_run_is_not_finished_by_who_says_that_it_is() {
    for generation in [1, 7, u64::MAX] {
        let mut run = run(restored(0, 0));
        assert_eq!(enter(&mut run, 1, holding(RUN_ID, 1, 50, generation)), Some(RefusalKind::Disowned));
        assert_eq!((run.members.len(), run.committed), (0, Place::default()));
    }
    // A state from a checkpoint can be read again.
    let mut run = run(restored(0, 0));
    assert_eq!(enter(&mut run, 1, holding(RUN_ID, 1, 50, 0)), None);
    assert_eq!(run.committed, Place::default());
}

#[test]
fn a_state_beyond_what_can_have_been_granted_is_none_of_the_runs() {
    let entered = |claims| enter(&mut run(restored(3, 12)), 1, claims);
    for claims in [
        holding(RUN_ID, 0, 12, 4),
        holding(RUN_ID, 0, 21, 3),
        holding(RUN_ID, 1, 0, 3),
        holding(RUN_ID, 0, 51, 2),
        holding(RUN_ID, 9, 0, 2),
        holding("77", 0, 12, 3),
        v1::Attach { run_id: RUN_ID.into(), generation: 4, ..Default::default() },
        // Claims of generations that an older copy of the journal does not know.
        v1::Attach { term: TERM + 7, ..holding(RUN_ID, 0, 12, 3) },
        v1::Attach { generation: 2, ..holding(RUN_ID, 0, 12, 3) },
        v1::Attach { run_id: "77".into(), generation: 1, ..Default::default() },
    ] {
        assert_eq!(entered(claims.clone()), Some(RefusalKind::Disowned), "{claims:?}");
    }
    // Steps that no member has reported are possible up to the next evaluation, which would be
    // recorded.
    for step in [0, 12, 13, 20] {
        assert_eq!(entered(holding(RUN_ID, 0, step, 3)), None);
    }
    assert_eq!(entered(v1::Attach { run_id: "77".into(), ..Default::default() }), None, "it claims nothing");
}

#[test]
fn who_says_that_it_is_where_nobody_was_told_to_come_loses_its_session() {
    let at = |stage, step, generation| Some(v1::Position { stage, step, generation });
    let said = [
        Message::Heartbeat(v1::Heartbeat { phase: 0, position: at(0, 50, 1) }),
        Message::Heartbeat(v1::Heartbeat { phase: 0, position: at(0, 0, 2) }),
        Message::Heartbeat(v1::Heartbeat { phase: 0, position: at(7, 0, 1) }),
        Message::Idle(v1::Idle { generation: 1, position: at(1, 50, 1), saving: None }),
        Message::Idle(v1::Idle { generation: 1, position: at(0, u64::MAX, 0), saving: None }),
    ];
    let mut reasons = BTreeSet::new();
    for message in said {
        let mut run = run(restored(0, 0));
        assert_eq!(enter(&mut run, 1, v1::Attach { run_id: RUN_ID.into(), ..Default::default() }), None);
        assert_eq!(run.last_generation, 1);
        let actions = run.on_event(Time::ZERO, Event::Message { session: SessionId(1), message });
        assert_eq!(refusal(&actions), Some(RefusalKind::InvalidArgument), "{actions:?}");
        assert_eq!(run.committed, Place::default());
        reasons.extend(actions.into_iter().filter_map(|action| match action {
            Action::Close { refusal, .. } => refusal.map(|refusal| refusal.reason),
            _ => None,
        }));
    }
    assert!(reasons.iter().all(|reason| reason.contains("it says where it cannot be")), "{reasons:?}");
}
