//! Tests of the checks of directives: examples, and random messages.

use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The number of validation images.
const IMAGES: u64 = 70;
const MAX_WORKERS: u32 = 3;
const WINDOW: u32 = 4;
/// The steps and the batch size of each stage.
const STAGES: [(u64, u32); 2] = [(9, 4), (5, 6)];

fn protocol() -> ProtocolChecker {
    let text = format!(
        "name: test\noutput: /nowhere\nworkers: {{ min: 1, max: {MAX_WORKERS} }}\n\
         data: {{ karpathy: {{ annotations: annotations.json, images: images }} }}\n\
         captioner: {{ preset: tiny }}\nevaluator: {{ preset: tiny }}\ncontrol: {{ window: {WINDOW} }}\nstages:\n"
    );
    let stages = STAGES.into_iter().enumerate().map(|(number, (steps, batch))| {
        format!(
            "  - {{ name: xe-{number}, objective: cross_entropy, steps: {steps}, batch: {batch}, optimizer: {{ learning_rate: 0.1 }} }}\n"
        )
    });
    let run = RunFile::parse(Path::new("run.yaml"), &stages.fold(text, |text, stage| text + &stage)).unwrap();
    ProtocolChecker::new(&run, IMAGES)
}

fn directive(generation: u64, kind: DirectiveKind) -> v1::Directive {
    v1::Directive { generation, directive: Some(kind) }
}

fn rendezvous(generation: u64) -> v1::Directive {
    let position = Some(v1::Position { stage: 0, step: 0, generation });
    directive(generation, DirectiveKind::Rendezvous(v1::Rendezvous { world_size: 2, position, ..Default::default() }))
}

fn train(generation: u64, first_step: u64, steps: u32) -> v1::Directive {
    let content = v1::Train { stage: 0, first_step, steps, share_begin: 0, share_end: 2 };
    directive(generation, DirectiveKind::Train(content))
}

fn evaluate(generation: u64, ranges: &[(u64, u64)]) -> v1::Directive {
    let ranges = ranges.iter().map(|&(begin, end)| v1::ImageRange { begin, end }).collect();
    directive(generation, DirectiveKind::Evaluate(v1::Evaluate { evaluation: 1, ranges }))
}

fn checkpoint(generation: u64, number: u64) -> v1::Directive {
    let name = "0-xe-00000004".to_owned();
    directive(generation, DirectiveKind::Checkpoint(v1::Checkpoint { checkpoint: number, name, journal: None }))
}

fn advance(generation: u64, stage: u32) -> v1::Directive {
    directive(generation, DirectiveKind::Advance(v1::Advance { stage }))
}

fn abandon(generation: u64) -> v1::Directive {
    directive(generation, DirectiveKind::Abandon(v1::Abandon { reason: "x".repeat(1 << 20) }))
}

fn finish(generation: u64) -> v1::Directive {
    directive(generation, DirectiveKind::Finish(v1::Finish {}))
}

fn step_done(generation: u64, step: u64) -> Message {
    let position = Some(v1::Position { stage: 0, step, generation });
    Message::StepDone(v1::StepDone { position, ..Default::default() })
}

fn evaluation_items(generation: u64, more: bool) -> Message {
    Message::EvaluationItems(v1::EvaluationItems { generation, more, ..Default::default() })
}

fn idle(generation: u64) -> Message {
    Message::Idle(v1::Idle { generation, ..Default::default() })
}

/// A message between the coordinator and the worker.
enum Exchange {
    /// A directive, and whether it has to be executed.
    Directive(v1::Directive, bool),
    /// A report of the worker.
    Report(Message),
}

use Exchange::{Directive, Report};

#[test]
fn directives_of_several_generations_are_accepted() {
    let mut protocol = protocol();
    let halt = |generation| directive(generation, DirectiveKind::Halt(v1::Halt::default()));
    for (index, exchange) in [
        Directive(rendezvous(3), true),
        // Steps are granted up to the window, and further with each report.
        Directive(train(3, 0, 4), true),
        Report(step_done(3, 1)),
        Report(step_done(3, 2)),
        Directive(train(3, 4, 2), true),
        Report(step_done(3, 6)),
        Directive(train(3, 6, 3), true),
        Directive(checkpoint(3, 1), true),
        Directive(evaluate(3, &[(0, 50), (50, 70)]), true),
        Report(step_done(3, 9)),
        Report(evaluation_items(3, true)),
        Report(evaluation_items(3, false)),
        Report(evaluation_items(3, false)),
        Directive(evaluate(3, &[]), true),
        Directive(advance(3, 1), true),
        Directive(halt(3), true),
        Directive(abandon(3), true),
        // A second Abandon is obsolete.
        Directive(abandon(3), false),
        Report(idle(3)),
        // The worker releases generation 4 without a directive: directives in flight are obsolete.
        Directive(rendezvous(4), true),
        Report(idle(4)),
        Directive(train(4, 0, 4), false),
        Directive(halt(4), false),
        Directive(abandon(4), false),
        Directive(abandon(3), false),
        Directive(rendezvous(9), true),
        Directive(finish(9), true),
    ]
    .into_iter()
    .enumerate()
    {
        match exchange {
            Report(message) => protocol.record_report(&message),
            Directive(directive, is_current) => {
                let checked = protocol.check(directive.clone());
                assert_eq!(
                    checked.map(|checked| checked.is_some()),
                    Ok(is_current),
                    "{index}: {:?}",
                    directive.directive
                );
            }
        }
    }
}

/// The violation with which the last of these directives is refused; the others are accepted.
fn violation(directives: impl IntoIterator<Item = v1::Directive>) -> String {
    let mut protocol = protocol();
    let mut directives = directives.into_iter().peekable();
    loop {
        let checked = protocol.check(directives.next().unwrap());
        match directives.peek() {
            Some(_) => assert!(checked.is_ok(), "{checked:?}"),
            None => return checked.expect_err("the last directive is invalid").to_string(),
        }
    }
}

#[test]
fn the_error_names_a_directive_that_is_invalid_at_this_point() {
    let long_checkpoint_name = checkpoint_named(&"\u{1b}x".repeat(1 << 20));
    for (directives, expected) in [
        (vec![train(1, 0, 1)], "Train: of generation 1, before any Rendezvous"),
        (vec![abandon(1)], "Abandon: of generation 1, before any Rendezvous"),
        (vec![rendezvous(1), evaluate(2, &[])], "Evaluate: of generation 2, in generation 1"),
        (vec![rendezvous(2), evaluate(1, &[])], "Evaluate: of generation 1, in generation 2"),
        (vec![rendezvous(1), abandon(2)], "Abandon: of generation 2, where the last is 1"),
        (vec![rendezvous(1), abandon(1), train(1, 0, 1)], "Train: of generation 1, after Abandon"),
        (vec![rendezvous(1), rendezvous(1)], "Rendezvous: generation 1 after generation 1"),
        (vec![rendezvous(1), rendezvous(2)], "Rendezvous: generation 2 before the worker has released generation 1"),
        (vec![rendezvous(0)], "Rendezvous: generation 0 after generation 0"),
        (vec![finish(0), finish(0)], "Finish: after Finish"),
        (vec![rendezvous(1), checkpoint(1, 5), checkpoint(1, 5)], "Checkpoint: number 5 after number 5"),
        (vec![rendezvous(1), long_checkpoint_name], "Checkpoint: the checkpoint name \"\\u{1b}x"),
        (vec![rendezvous(1), evaluate(1, &[(0, 50)]), evaluate(1, &[])], "Evaluate: while 1 image ranges"),
        (vec![rendezvous(1), evaluate(1, &[(50, 70), (0, 50)])], "Evaluate: the images 0..50 of 70, after 70"),
        (vec![rendezvous(1), evaluate(1, &[(0, 51)])], "Evaluate: the images 0..51 of 70"),
        (vec![rendezvous(1), train(1, 0, 5)], "Train: up to step 5 after a report of step 0, with a window of 4"),
        (vec![rendezvous(1), advance(1, 0)], "Advance: to stage 0 from stage 0"),
        (vec![rendezvous(1), advance(1, 2)], "Advance: stage 2 (from 0) of a run that has 2"),
    ] {
        let error = violation(directives);
        assert!(error.starts_with(&format!("the coordinator broke the protocol: {expected}")), "{error}");
        assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
    }
}

fn checkpoint_named(name: &str) -> v1::Directive {
    directive(1, DirectiveKind::Checkpoint(v1::Checkpoint { checkpoint: 1, name: name.to_owned(), journal: None }))
}

#[test]
fn the_number_of_unreported_checkpoints_is_limited() {
    let mut protocol = protocol();
    protocol.check(rendezvous(1)).unwrap();
    let limit = MAX_UNREPORTED_CHECKPOINTS as u64;
    (0..limit).for_each(|number| assert!(protocol.check(checkpoint(1, number)).is_ok()));
    assert!(protocol.check(checkpoint(1, limit)).is_err());
    protocol.record_report(&Message::CheckpointFailed(v1::CheckpointFailed { generation: 1, ..Default::default() }));
    assert!(protocol.check(checkpoint(1, limit)).is_ok());
}

#[test]
fn changed_settings_of_a_run_change_the_limits() {
    let mut protocol = protocol();
    let changed = RunFile::parse(
        Path::new("run.yaml"),
        "name: test\noutput: /nowhere\nworkers: { min: 1, max: 2 }\n\
         data: { karpathy: { annotations: annotations.json, images: images } }\n\
         captioner: { preset: tiny }\nevaluator: { preset: tiny }\nstages:\n  \
         - { name: xe, objective: cross_entropy, steps: 90, batch: 4, optimizer: { learning_rate: 0.1 } }\n",
    );
    protocol.configure(&changed.unwrap());
    protocol.check(rendezvous(1)).unwrap();
    assert!(protocol.check(train(1, 0, 8)).is_ok());
}

/// Numbers, some of which are valid in a run.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..6_u64, 2 => 0..80_u64, 1 => Just(u64::MAX), 1 => Just(u64::from(u32::MAX)), 1 => any::<u64>()]
}

fn number_u32() -> impl Strategy<Value = u32> {
    number().prop_map(|number| number as u32)
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[0-9a-z-]{1,9}",
        "[./\u{1b}\0a]{0,9}",
        Just(String::new()),
        Just("0a".repeat(32)),
        Just("x".repeat(70_000))
    ]
}

fn any_rendezvous() -> impl Strategy<Value = DirectiveKind> {
    let position = prop::option::weighted(0.9, (number_u32(), number(), number()));
    let start = prop::option::of((number(), number()));
    let source = prop::option::of(number_u32());
    let peers = prop_oneof![4 => 0..3_usize, 1 => 0..2_000_usize];
    (number_u32(), number_u32(), source, text(), text(), position, start, peers).prop_map(
        |(rank, world_size, source_rank, checkpoint, checkpoint_sha256, position, start, peers)| {
            DirectiveKind::Rendezvous(v1::Rendezvous {
                rank,
                world_size,
                store_address: checkpoint.clone(),
                source_rank,
                checkpoint,
                checkpoint_sha256,
                checkpoint_run_id: String::new(),
                position: position.map(|(stage, step, generation)| v1::Position { stage, step, generation }),
                peers: vec![v1::Peer::default(); peers],
                sequence_start: start.map(|(step, epoch)| v1::SequenceStart { step, epoch }),
                term: 0,
            })
        },
    )
}

fn any_kind() -> impl Strategy<Value = Option<DirectiveKind>> {
    let ranges = prop::collection::vec((number(), number()), 0..4);
    let kind = prop_oneof![
        4 => any_rendezvous(),
        6 => (number_u32(), number(), number_u32(), number_u32(), number_u32()).prop_map(
            |(stage, first_step, steps, share_begin, share_end)| {
                DirectiveKind::Train(v1::Train { stage, first_step, steps, share_begin, share_end })
            }
        ),
        3 => (number(), ranges).prop_map(|(evaluation, ranges)| {
            let ranges = ranges.into_iter().map(|(begin, end)| v1::ImageRange { begin, end }).collect();
            DirectiveKind::Evaluate(v1::Evaluate { evaluation, ranges })
        }),
        3 => (number(), text()).prop_map(|(checkpoint, name)| DirectiveKind::Checkpoint(v1::Checkpoint { checkpoint, name, journal: None })),
        3 => number_u32().prop_map(|stage| DirectiveKind::Advance(v1::Advance { stage })),
        1 => text().prop_map(|reason| DirectiveKind::Abandon(v1::Abandon { reason })),
        1 => text().prop_map(|reason| DirectiveKind::Halt(v1::Halt { reason })),
        1 => text().prop_map(|reason| DirectiveKind::Leave(v1::Leave { reason, orderly: false })),
    ];
    prop::option::weighted(0.95, kind)
}

/// Reports of a worker, some of which fit the current generation.
fn any_report() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => number().prop_map(idle),
        2 => (number(), number()).prop_map(|(generation, step)| step_done(generation, step)),
        1 => number().prop_map(|generation| evaluation_items(generation, false)),
        1 => (number(), number_u32()).prop_map(|(generation, stage)| Message::Advanced(v1::Advanced { generation, stage })),
    ]
}

/// A directive that is valid next, so that the test reaches every state of the protocol.
fn valid_directive(protocol: &ProtocolChecker, kind: u8) -> v1::Directive {
    let Some(generation) = &protocol.generation else { return rendezvous(1) };
    let (number, (stage, step)) = (generation.number, generation.granted);
    match kind % 5 {
        0 => rendezvous(number.saturating_add(1)),
        1 => {
            let content = v1::Train { stage, first_step: step, steps: 1, share_begin: 0, share_end: 2 };
            directive(number, DirectiveKind::Train(content))
        }
        2 => evaluate(number, &[(0, 50), (50, 70)]),
        3 => checkpoint(number, generation.last_checkpoint.map_or(0, |last| last.saturating_add(1))),
        _ => advance(number, stage + 1),
    }
}

/// A message of the property test below.
#[derive(Clone, Debug)]
enum RandomMessage {
    Directive(v1::Directive),
    Report(Message),
    /// A [`valid_directive`] of this kind.
    ValidDirective(u8),
}

fn random_message() -> impl Strategy<Value = RandomMessage> {
    let directive = (number(), any_kind());
    prop_oneof![
        3 => directive.prop_map(|(generation, directive)| RandomMessage::Directive(v1::Directive { generation, directive })),
        1 => any_report().prop_map(RandomMessage::Report),
        4 => any::<u8>().prop_map(RandomMessage::ValidDirective),
    ]
}

proptest! {
    #[test]
    fn accepted_directives_are_within_the_limits_of_the_run(
        messages in prop::collection::vec(random_message(), 0..60),
    ) {
        let mut protocol = protocol();
        // The position and the generation after the accepted directives.
        let (mut position, mut last_generation) = (None, 0);
        for message in messages {
            let directive = match message {
                RandomMessage::Directive(directive) => directive,
                RandomMessage::Report(report) => {
                    protocol.record_report(&report);
                    continue;
                }
                RandomMessage::ValidDirective(kind) => {
                    if kind % 5 == 0 {
                        protocol.record_report(&idle(u64::MAX));
                    }
                    valid_directive(&protocol, kind)
                }
            };
            let generation = directive.generation;
            match protocol.check(directive) {
                Err(violation) => {
                    let violation = violation.to_string();
                    prop_assert!(violation.len() < 2_000 && !violation.contains(char::is_control), "{violation}");
                }
                Ok(None) => {}
                Ok(Some(checked)) => {
                    prop_assert_eq!(checked.generation(), generation);
                    assert_within_limits(checked.kind(), generation, &mut position, &mut last_generation);
                }
            }
        }
    }
}

/// Checks an accepted directive. `position` and `last_generation` are those after the previous
/// directives, and are updated.
fn assert_within_limits(
    kind: &DirectiveKind,
    generation: u64,
    position: &mut Option<StageStep>,
    last_generation: &mut u64,
) {
    match kind {
        DirectiveKind::Rendezvous(content) => {
            assert!(
                generation > *last_generation && content.rank < content.world_size && content.world_size <= MAX_WORKERS
            );
            assert!(content.source_rank.is_none_or(|source| source < content.world_size));
            assert!(content.peers.len() < content.world_size as usize);
            assert!(!content.checkpoint.contains(['/', '\\', '\0']) && !content.checkpoint.starts_with('.'));
            let start_position = content.position.unwrap();
            assert!(start_position.step <= STAGES[start_position.stage as usize].0);
            let start = content.sequence_start.unwrap_or_default();
            // No stage has more than 9 steps or 6 samples per step, and so 54 epochs.
            assert!(start.step <= start_position.step && start.epoch <= 9 * 6);
            (*position, *last_generation) = (Some((start_position.stage, start_position.step)), generation);
        }
        DirectiveKind::Train(content) => {
            let (steps, batch) = STAGES[content.stage as usize];
            assert_eq!((Some((content.stage, content.first_step)), generation), (*position, *last_generation));
            let end = content.first_step + u64::from(content.steps);
            assert!(
                content.steps > 0
                    && end <= steps
                    && content.share_begin < content.share_end
                    && content.share_end <= batch
            );
            *position = Some((content.stage, end));
        }
        DirectiveKind::Evaluate(content) => {
            assert_eq!(generation, *last_generation);
            let images: u64 = content.ranges.iter().map(|range| range.end - range.begin).sum();
            assert!(images <= IMAGES && content.ranges.iter().all(|range| range.end <= IMAGES));
        }
        DirectiveKind::Checkpoint(content) => {
            assert_eq!(generation, *last_generation);
            assert_eq!(Path::new(&content.name).file_name().and_then(|name| name.to_str()), Some(&*content.name));
        }
        DirectiveKind::Advance(content) => {
            assert_eq!((Some(content.stage), generation), (position.map(|(stage, _)| stage + 1), *last_generation));
            assert!((content.stage as usize) < STAGES.len());
            *position = Some((content.stage, 0));
        }
        DirectiveKind::Abandon(v1::Abandon { reason }) | DirectiveKind::Halt(v1::Halt { reason }) => {
            assert!(generation == *last_generation && reason.is_empty());
        }
        DirectiveKind::Finish(_) | DirectiveKind::Leave(_) => {}
    }
}
