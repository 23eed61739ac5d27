//! Tests of what follows from directives, reports and lost connections.

use super::*;

const IMAGES: u64 = 70;
const RUN_ID: &str = "3fa2";

fn run() -> RunFile {
    config::testing::run_file(vec![config::testing::stage("a", 9, 4, None, None)])
}

fn session() -> Session {
    Session::new(run(), RUN_ID.to_owned(), IMAGES)
}

fn attach(session: &mut Session) -> v1::Attach {
    session.attach("token".to_owned(), "host:1".to_owned(), v1::DataSet::default())
}

fn directive(generation: u64, kind: DirectiveKind) -> v1::Directive {
    v1::Directive { generation, directive: Some(kind) }
}

fn rendezvous(generation: u64) -> v1::Directive {
    let position = Some(v1::Position::default());
    let content = v1::Rendezvous { world_size: 1, position, term: 40 + generation, ..Default::default() };
    directive(generation, DirectiveKind::Rendezvous(content))
}

fn abandon(generation: u64) -> v1::Directive {
    directive(generation, DirectiveKind::Abandon(v1::Abandon::default()))
}

fn halt(generation: u64) -> v1::Directive {
    directive(generation, DirectiveKind::Halt(v1::Halt::default()))
}

fn leave(orderly: bool) -> v1::Directive {
    directive(0, DirectiveKind::Leave(v1::Leave { reason: "drained".to_owned(), orderly }))
}

fn idle(generation: u64, step: u64) -> Message {
    let position = Some(v1::Position { stage: 0, step, generation });
    Message::Idle(v1::Idle { generation, position, saving: None })
}

fn step_done(generation: u64, step: u64) -> Message {
    let position = Some(v1::Position { stage: 0, step, generation });
    Message::StepDone(v1::StepDone { position, ..Default::default() })
}

/// The command of a directive that is executed.
fn executed(session: &mut Session, directive: v1::Directive) -> Command {
    match session.on_directive(directive).unwrap() {
        DirectiveEffect::Execute(command) => command,
        other => panic!("{other:?}"),
    }
}

/// The worker's session in a generation.
fn session_in_generation(generation: u64) -> Session {
    let mut session = session();
    attach(&mut session);
    executed(&mut session, rendezvous(generation));
    session
}

#[test]
fn the_flags_of_a_generation_are_those_of_all_its_commands() {
    let mut session = session_in_generation(3);
    let train = v1::Train { first_step: 0, steps: 1, share_end: 4, ..Default::default() };
    let command = executed(&mut session, directive(3, DirectiveKind::Train(train)));
    assert!(matches!(session.on_directive(halt(3)), Ok(DirectiveEffect::None)));
    assert!(command.flags.halt.is_raised() && !command.flags.abandon.is_raised());
    executed(&mut session, abandon(3));
    assert!(command.flags.abandon.is_raised());
    assert!(matches!(session.on_report(idle(3, 0)), ReportEffect::Send(_)));
    let next = executed(&mut session, rendezvous(4));
    assert!(!next.flags.halt.is_raised() && !next.flags.abandon.is_raised());
    // Directives for the earlier generation are obsolete: they do not stop this one.
    for obsolete in [halt(3), abandon(3)] {
        assert!(matches!(session.on_directive(obsolete), Ok(DirectiveEffect::None)));
    }
    assert!(!next.flags.halt.is_raised() && !next.flags.abandon.is_raised());
}

#[test]
fn an_abandon_is_executed_once() {
    let mut session = session_in_generation(3);
    executed(&mut session, abandon(3));
    assert!(matches!(session.on_directive(abandon(3)), Ok(DirectiveEffect::None)));
    _ = session.on_report(idle(3, 0));
    assert!(matches!(session.on_directive(abandon(3)), Ok(DirectiveEffect::None)));
}

#[test]
fn a_lost_connection_releases_the_generation_and_keeps_the_state() {
    let mut session = session_in_generation(3);
    let command = session.on_disconnect();
    assert_eq!(command.directive.generation(), 3);
    assert!(matches!(command.directive.kind(), DirectiveKind::Abandon(_)));
    assert!(command.flags.halt.is_raised() && !command.flags.abandon.is_raised());
    // The step in flight completes; an Idle of an earlier generation may still be queued.
    assert!(matches!(session.on_report(step_done(3, 1)), ReportEffect::Discard));
    assert!(matches!(session.on_report(idle(2, 0)), ReportEffect::Discard));
    session.on_release_timeout();
    assert!(command.flags.abandon.is_raised());
    assert!(matches!(session.on_report(idle(3, 1)), ReportEffect::Released));

    assert_eq!(session.continue_with(&run(), RUN_ID), Continuation::Unchanged);
    let attach = attach(&mut session);
    let held = Some(v1::Position { stage: 0, step: 1, generation: 3 });
    assert_eq!((attach.holds, attach.generation, attach.term), (held, 3, 43));
    assert_eq!(attach.run_id, RUN_ID);
    // The report of a save that was in progress reaches the next session.
    let saved = Message::CheckpointDone(v1::CheckpointDone { generation: 3, ..Default::default() });
    assert!(matches!(session.on_report(saved), ReportEffect::Send(_)));
}

#[test]
fn a_worker_that_loses_its_connection_before_the_first_generation_holds_nothing() {
    let mut session = session();
    attach(&mut session);
    let command = session.on_disconnect();
    assert_eq!(command.directive.generation(), 0);
    let idle = v1::Idle { generation: 0, position: None, saving: None };
    assert!(matches!(session.on_report(Message::Idle(idle)), ReportEffect::Released));
    let attach = attach(&mut session);
    assert_eq!((attach.holds, attach.generation, attach.term), (None, 0, 0));
}

#[test]
fn a_leave_is_expected_if_no_state_is_lost_or_the_worker_has_asked_for_it() {
    let is_expected = |session: &mut Session, orderly| match session.on_directive(leave(orderly)) {
        Ok(DirectiveEffect::Leave { is_expected, reason }) if reason == "drained" => is_expected,
        other => panic!("{other:?}"),
    };
    let mut session = session_in_generation(3);
    assert_eq!([true, false].map(|orderly| is_expected(&mut session, orderly)), [true, false]);
    assert!(matches!(session.announce_leave("signal"), Message::Leaving(v1::Leaving { reason }) if reason == "signal"));
    assert!(session.flags().halt.is_raised());
    assert_eq!([true, false].map(|orderly| is_expected(&mut session, orderly)), [true; 2]);
    // It has to be announced again in the next session.
    attach(&mut session);
    assert!(!session.has_announced_leave());
}

#[test]
fn the_last_report_ends_a_worker() {
    let failed = |fatal| Message::Failed(v1::Failed { generation: 3, fatal, ..Default::default() });
    let mut session = session_in_generation(3);
    assert!(matches!(session.on_report(failed(false)), ReportEffect::Send(_)));
    assert!(matches!(session.on_report(failed(true)), ReportEffect::SendLast(_)));
    assert!(matches!(session.on_report(Message::Finished(v1::Finished {})), ReportEffect::SendLast(_)));
    // Also if it was made while the connection was lost.
    _ = session.on_disconnect();
    assert!(matches!(session.on_report(failed(true)), ReportEffect::SendLast(_)));
}

#[test]
fn a_violation_is_reported_and_changes_nothing() {
    let mut session = session_in_generation(3);
    let violation = session.on_directive(rendezvous(4)).unwrap_err();
    let Message::Failed(failed) = session.violation_report(&violation) else { panic!("not a failure") };
    assert!(failed.fatal && failed.generation == 3 && failed.reason.contains("before the worker has released"));
    assert_eq!((session.generation(), session.term()), (3, 43));
}

#[test]
fn changed_settings_are_applied_unless_data_or_models_depend_on_them() {
    let mut session = session();
    assert_eq!(session.continue_with(&run(), RUN_ID), Continuation::Unchanged);
    let mut faster = run();
    faster.stages[0].optimizer.learning_rate *= 2.0;
    let changed = Continuation::Changed("stages[0].optimizer.learning_rate".to_owned());
    assert_eq!(session.continue_with(&faster, RUN_ID), changed);
    assert_eq!(session.continue_with(&faster, RUN_ID), Continuation::Unchanged);
    let elsewhere = RunFile { output: "/elsewhere".into(), ..faster.clone() };
    let reload = session.continue_with(&elsewhere, RUN_ID);
    assert!(matches!(&reload, Continuation::Reload(reason) if reason.contains("output")), "{reload:?}");
    let reload = session.continue_with(&faster, "77");
    assert!(matches!(&reload, Continuation::Reload(reason) if reason.contains("another run")), "{reload:?}");
}
