//! Tests of the order of work and reports.

use super::*;
use crate::checker;

/// The command of a directive of generation `generation`, without flags of its own.
fn command(generation: u64, flags: &GenerationFlags, kind: DirectiveKind) -> Command {
    Command { directive: checker::unchecked(generation, kind), flags: flags.clone() }
}

fn rendezvous(step: u64) -> DirectiveKind {
    let position = Some(v1::Position { stage: 0, step, generation: 2 });
    DirectiveKind::Rendezvous(v1::Rendezvous { position, ..Default::default() })
}

fn train(first_step: u64, steps: u32) -> v1::Train {
    v1::Train { stage: 0, first_step, steps, share_begin: 0, share_end: 4 }
}

fn evaluate(ranges: &[(u64, u64)]) -> v1::Evaluate {
    let ranges = ranges.iter().map(|&(begin, end)| v1::ImageRange { begin, end }).collect();
    v1::Evaluate { evaluation: 7, ranges }
}

fn position(step: u64) -> Option<v1::Position> {
    Some(v1::Position { stage: 0, step, generation: 3 })
}

fn idle(step: u64) -> Message {
    Message::Idle(v1::Idle { generation: 3, position: position(step), saving: None })
}

fn step_done(step: u64) -> Message {
    Message::StepDone(v1::StepDone { position: position(step), samples: 4, ..Default::default() })
}

/// A member of generation 3, at step 5 of the first stage.
fn member() -> (Training, GenerationFlags) {
    let (mut training, flags) = (Training::default(), GenerationFlags::default());
    assert!(matches!(training.begin(command(3, &flags, rendezvous(5))).work, Some(Work::Rendezvous(_))));
    let ready = Message::Ready(v1::Ready { generation: 3, position: position(5) });
    assert_eq!(training.formed(), Response { reports: vec![ready], work: None });
    (training, flags)
}

/// The reports of a release that follows this response.
fn released(training: &mut Training, response: Response) -> Vec<Message> {
    assert_eq!(response.work, Some(Work::Release));
    let after = training.released(None);
    assert_eq!((training.work(), &after.work), (None, &None));
    response.reports.into_iter().chain(after.reports).collect()
}

fn applied(training: &mut Training, is_halt_requested: bool) -> Response {
    training.step_applied(v1::StepDone { samples: 4, ..Default::default() }, is_halt_requested)
}

#[test]
fn granted_steps_are_trained_one_by_one() {
    let (mut training, flags) = member();
    let grant = train(5, 2);
    let response = training.begin(command(3, &flags, DirectiveKind::Train(grant)));
    assert_eq!(response, Response { reports: vec![], work: Some(Work::Step(grant)) });
    assert_eq!(applied(&mut training, false), Response { reports: vec![step_done(6)], work: Some(Work::Step(grant)) });
    assert_eq!(applied(&mut training, false), Response { reports: vec![step_done(7)], work: None });
    let stage = DirectiveKind::Advance(v1::Advance { stage: 1 });
    assert_eq!(training.begin(command(3, &flags, stage)).work, Some(Work::EnterStage(1)));
    let advanced = Message::Advanced(v1::Advanced { generation: 3, stage: 1 });
    assert_eq!(training.stage_entered(), Response { reports: vec![advanced], work: None });
    assert_eq!(training.position(), Some(v1::Position { stage: 1, step: 0, generation: 3 }));
}

#[test]
fn a_generation_ends_after_the_step_in_which_a_rank_has_requested_it() {
    let (mut training, flags) = member();
    _ = training.begin(command(3, &flags, DirectiveKind::Train(train(5, 4))));
    let response = applied(&mut training, true);
    assert_eq!(released(&mut training, response), [step_done(6), idle(6)]);
}

#[test]
fn later_directives_of_a_released_generation_are_obsolete_except_abandon() {
    let (mut training, flags) = member();
    let failure = GenerationFailure { reason: "a peer failed".into(), ..Default::default() };
    let response = training.failed(failure);
    let failed = v1::Failed { generation: 3, reason: "a peer failed".into(), ..Default::default() };
    assert_eq!(released(&mut training, response), [Message::Failed(failed), idle(5)]);
    for kind in [DirectiveKind::Train(train(5, 1)), DirectiveKind::Checkpoint(v1::Checkpoint::default())] {
        let obsolete = command(3, &flags, kind);
        assert!(training.is_obsolete(&obsolete));
        assert_eq!(training.begin(obsolete), Response::default());
    }
    let response = training.begin(command(3, &flags, DirectiveKind::Abandon(v1::Abandon::default())));
    assert_eq!(released(&mut training, response), [idle(5)]);
    assert!(!training.is_obsolete(&command(4, &flags, DirectiveKind::Train(train(5, 1)))));
}

#[test]
fn an_abandoned_generation_is_released_without_a_report_until_the_directive() {
    let (mut training, flags) = member();
    _ = training.begin(command(3, &flags, DirectiveKind::Train(train(5, 4))));
    flags.abandon.raise();
    // Between two steps.
    let response = applied(&mut training, false);
    assert_eq!(released(&mut training, response), [step_done(6)]);
    let response = training.begin(command(3, &flags, DirectiveKind::Abandon(v1::Abandon::default())));
    assert_eq!(released(&mut training, response), [idle(6)]);

    // In the middle of a step, and before any.
    let (mut training, flags) = member();
    _ = training.begin(command(3, &flags, DirectiveKind::Train(train(5, 4))));
    let response = training.abandoned();
    assert_eq!(released(&mut training, response), []);
    let (mut training, flags) = member();
    flags.abandon.raise();
    let response = training.begin(command(3, &flags, DirectiveKind::Train(train(5, 4))));
    assert_eq!(released(&mut training, response), []);
}

#[test]
fn a_grant_that_does_not_start_at_the_workers_position_fails_the_generation() {
    let (mut training, flags) = member();
    let response = training.begin(command(3, &flags, DirectiveKind::Train(train(4, 1))));
    let reports = released(&mut training, response);
    assert!(
        matches!(&reports[..], [Message::Failed(failed), Message::Idle(_)] if !failed.fatal && failed.reason.contains("position")),
        "{reports:?}"
    );
}

#[test]
fn ranges_are_reported_in_parts_and_a_halt_ends_after_the_range_in_flight() {
    let items = |count: usize| vec![v1::EvaluationItem::default(); count];
    let report = |begin, end, items, more| {
        let range = Some(v1::ImageRange { begin, end });
        Message::EvaluationItems(v1::EvaluationItems { generation: 3, evaluation: 7, range, items, more })
    };
    let (mut training, flags) = member();
    let ranges = [(0, 50), (50, 100), (100, 120)];
    let response = training.begin(command(3, &flags, DirectiveKind::Evaluate(evaluate(&ranges))));
    assert_eq!(response.work, Some(Work::Caption(evaluate(&ranges))));
    let response = training.captioned(vec![items(30), items(20)]);
    assert_eq!(response.reports, [report(0, 50, items(30), true), report(0, 50, items(20), false)]);
    assert_eq!(response.work, Some(Work::Caption(evaluate(&ranges[1..]))));
    flags.halt.raise();
    let response = training.captioned(vec![items(50)]);
    assert_eq!(released(&mut training, response), [report(50, 100, items(50), false), idle(5)]);

    // A halt has no effect on the last range, and none is begun if there are none.
    let (mut training, flags) = member();
    _ = training.begin(command(3, &flags, DirectiveKind::Evaluate(evaluate(&ranges[2..]))));
    flags.halt.raise();
    let last = report(100, 120, items(20), false);
    assert_eq!(training.captioned(vec![items(20)]), Response { reports: vec![last], work: None });
    let response = training.begin(command(3, &flags, DirectiveKind::Evaluate(evaluate(&[]))));
    assert_eq!(response, Response::default());
}

#[test]
fn a_state_that_was_overwritten_has_no_position() {
    let (mut training, flags) = member();
    _ = training.begin(command(4, &flags, rendezvous(5)));
    training.replace_state(None);
    let response = training.failed(GenerationFailure::default());
    let reports = released(&mut training, response);
    assert!(matches!(&reports[1], Message::Idle(v1::Idle { generation: 4, position: None, .. })), "{reports:?}");
}

#[test]
fn a_worker_that_cannot_continue_reports_it_last() {
    let (mut training, _) = member();
    let response = training.cannot_continue("no memory".into());
    let failed = v1::Failed { generation: 3, reason: "no memory".into(), fatal: true, ..Default::default() };
    assert_eq!(released(&mut training, response), [Message::Failed(failed)]);
    assert_eq!(training.end(), Some(&TrainingEnd::Failed("no memory".into())));
}

#[test]
fn a_complete_run_is_reported_after_the_saves() {
    let (mut training, flags) = member();
    assert_eq!(training.begin(command(3, &flags, DirectiveKind::Finish(v1::Finish {}))).work, Some(Work::AwaitSaves));
    assert_eq!(training.end(), None);
    assert_eq!(training.saves_completed().reports, [Message::Finished(v1::Finished {})]);
    assert_eq!(training.end(), Some(&TrainingEnd::Finished));

    // Also if the last generation has failed on this worker.
    let (mut training, flags) = member();
    let response = training.failed(GenerationFailure::default());
    released(&mut training, response);
    assert_eq!(training.begin(command(3, &flags, DirectiveKind::Finish(v1::Finish {}))).work, Some(Work::AwaitSaves));
}
