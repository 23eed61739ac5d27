//! Workers that claim to hold training states that they cannot hold.

use std::collections::BTreeSet;

use dico_engine::{
    Action, Engine, Event, RefusalKind, RequestId, SessionId, Time,
    plan::{Boundary, Position},
    restored::RestoredRun,
    term_log::TermLog,
};
use proto::{PROTOCOL_VERSION, v1, v1::worker_message::Message};

use super::session_token_of;
use crate::simulation::WORKER_ADDRESS;
use config::testing;

const RUN_ID: &str = "3fa2";
/// The term of the coordinator that formed the restored generations.
const TERM: u64 = 12;

/// A run in its first stage, as read from a journal.
fn restored_run(last_generation: u64, step: u64) -> RestoredRun {
    let committed = Position { stage: 0, step };
    let passed_boundaries =
        [(Position { stage: 0, step: 10 }, Boundary::Evaluation)].into_iter().filter(|_| step >= 10).collect();
    let mut term_log = TermLog::default();
    (1..=last_generation).for_each(|generation| term_log.record(generation, TERM));
    RestoredRun {
        run_id: RUN_ID.into(),
        last_generation,
        term_log,
        committed,
        passed_boundaries,
        ..RestoredRun::default()
    }
}

/// A restored run whose first stage is evaluated every ten steps.
fn resume(restored: RestoredRun) -> Engine {
    let stages = vec![testing::stage("a", 50, 8, None, Some(10)), testing::stage("b", 50, 8, None, None)];
    Engine::new(testing::run_file(stages), restored, TERM + 1)
}

/// Joins and attaches with these claims. Returns the kind of the refusal, if there is one.
fn attach_with(engine: &mut Engine, session: u64, claims: v1::Attach) -> Option<RefusalKind> {
    let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
    let generated_join_key = format!("join key {session}");
    let event = Event::Join { request: RequestId(0), address: WORKER_ADDRESS, generated_join_key, join };
    let session_token = session_token_of(&engine.on_event(Time::ZERO, event));
    let data_set = Some(v1::DataSet::default());
    let attach = v1::Attach { session_token, store_address: "host:1".into(), data_set, ..claims };
    let actions = engine.on_event(Time::ZERO, Event::Attach { session: SessionId(session), attach });
    refusal(&actions)
}

/// The kind of refusal with which these actions close a session.
fn refusal(actions: &[Action]) -> Option<RefusalKind> {
    actions.iter().find_map(|action| match action {
        Action::Close { refusal: Some(refusal), .. } => Some(refusal.kind),
        _ => None,
    })
}

/// The claim to hold a state that the worker's last generation has trained.
fn claim_state(run_id: &str, stage: u32, step: u64, generation: u64) -> v1::Attach {
    let holds = Some(v1::Position { stage, step, generation });
    v1::Attach { run_id: run_id.into(), generation, term: TERM, holds, ..Default::default() }
}

#[test]
fn a_new_run_refuses_a_worker_that_claims_its_final_state() {
    for generation in [1, 7, u64::MAX] {
        let mut engine = resume(restored_run(0, 0));
        assert_eq!(
            attach_with(&mut engine, 1, claim_state(RUN_ID, 1, 50, generation)),
            Some(RefusalKind::ForeignState)
        );
        assert_eq!((engine.state().members.len(), engine.state().history.committed), (0, Position::default()));
    }
    // A state of generation 0 was read from a checkpoint. It is not refused, but the run does not
    // use it.
    let mut engine = resume(restored_run(0, 0));
    assert_eq!(attach_with(&mut engine, 1, claim_state(RUN_ID, 1, 50, 0)), None);
    assert_eq!(engine.state().history.committed, Position::default());
}

#[test]
fn a_state_that_cannot_have_been_granted_is_refused() {
    let refusal_of = |claims| attach_with(&mut resume(restored_run(3, 12)), 1, claims);
    for claims in [
        // A generation that does not exist.
        claim_state(RUN_ID, 0, 12, 4),
        // Positions beyond the evaluation at step 20, which the journal does not have.
        claim_state(RUN_ID, 0, 21, 3),
        claim_state(RUN_ID, 1, 0, 3),
        // A step and a stage that the run does not have.
        claim_state(RUN_ID, 0, 51, 2),
        claim_state(RUN_ID, 9, 0, 2),
        // Another run.
        claim_state("77", 0, 12, 3),
        v1::Attach { run_id: RUN_ID.into(), generation: 4, ..Default::default() },
        // Generations that an older copy of the journal does not know.
        v1::Attach { term: TERM + 7, ..claim_state(RUN_ID, 0, 12, 3) },
        v1::Attach { generation: 2, ..claim_state(RUN_ID, 0, 12, 3) },
        v1::Attach { run_id: "77".into(), generation: 1, ..Default::default() },
    ] {
        assert_eq!(refusal_of(claims.clone()), Some(RefusalKind::ForeignState), "{claims:?}");
    }
    // Members may have trained steps that they have not reported, up to the next evaluation: they
    // cannot pass it, because it would be recorded in the journal.
    for step in [0, 12, 13, 20] {
        assert_eq!(refusal_of(claim_state(RUN_ID, 0, step, 3)), None);
    }
    assert_eq!(
        refusal_of(v1::Attach { run_id: "77".into(), ..Default::default() }),
        None,
        "a worker without claims was refused"
    );
}

#[test]
fn a_session_that_reports_an_impossible_position_is_closed() {
    let position = |stage, step, generation| Some(v1::Position { stage, step, generation });
    let messages = [
        Message::Heartbeat(v1::Heartbeat { phase: 0, position: position(0, 50, 1) }),
        Message::Heartbeat(v1::Heartbeat { phase: 0, position: position(0, 0, 2) }),
        Message::Heartbeat(v1::Heartbeat { phase: 0, position: position(7, 0, 1) }),
        Message::Idle(v1::Idle { generation: 1, position: position(1, 50, 1), saving: None }),
        Message::Idle(v1::Idle { generation: 1, position: position(0, u64::MAX, 0), saving: None }),
    ];
    let mut reasons = BTreeSet::new();
    for message in messages {
        let mut engine = resume(restored_run(0, 0));
        assert_eq!(attach_with(&mut engine, 1, v1::Attach { run_id: RUN_ID.into(), ..Default::default() }), None);
        assert_eq!(engine.state().generations.last_number, 1);
        let actions = engine.on_event(Time::ZERO, Event::Message { session: SessionId(1), message });
        assert_eq!(refusal(&actions), Some(RefusalKind::InvalidArgument), "{actions:?}");
        assert_eq!(engine.state().history.committed, Position::default());
        reasons.extend(actions.into_iter().filter_map(|action| match action {
            Action::Close { refusal, .. } => refusal.map(|refusal| refusal.reason),
            _ => None,
        }));
    }
    assert!(reasons.iter().all(|reason| reason.contains("it reported an impossible position")), "{reasons:?}");
}
