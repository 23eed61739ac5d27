use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The number of validation images.
const IMAGES: u64 = 70;
const MAX_WORKERS: u32 = 3;
const WINDOW: u32 = 4;
/// The steps and the batch size of each stage.
const STAGES: [(u64, u32); 2] = [(9, 4), (5, 6)];

fn protocol() -> Protocol {
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
    Protocol::new(&run, IMAGES)
}

fn directive(generation: u64, kind: Kind) -> v1::Directive {
    v1::Directive { generation, directive: Some(kind) }
}

fn rendezvous(generation: u64) -> v1::Directive {
    let position = Some(v1::Position { stage: 0, step: 0, generation });
    directive(generation, Kind::Rendezvous(v1::Rendezvous { world_size: 2, position, ..Default::default() }))
}

fn train(generation: u64, first_step: u64, steps: u32) -> v1::Directive {
    let order = v1::Train { stage: 0, first_step, steps, share_begin: 0, share_end: 2 };
    directive(generation, Kind::Train(order))
}

fn evaluate(generation: u64, ranges: &[(u64, u64)]) -> v1::Directive {
    let ranges = ranges.iter().map(|&(begin, end)| v1::ImageRange { begin, end }).collect();
    directive(generation, Kind::Evaluate(v1::Evaluate { evaluation: 1, ranges }))
}

fn checkpoint(generation: u64, number: u64) -> v1::Directive {
    let name = "0-xe-00000004".to_owned();
    directive(generation, Kind::Checkpoint(v1::Checkpoint { checkpoint: number, name, journal: None }))
}

fn advance(generation: u64, stage: u32) -> v1::Directive {
    directive(generation, Kind::Advance(v1::Advance { stage }))
}

fn abandon(generation: u64) -> v1::Directive {
    directive(generation, Kind::Abandon(v1::Abandon { reason: "x".repeat(1 << 20) }))
}

fn finish(generation: u64) -> v1::Directive {
    directive(generation, Kind::Finish(v1::Finish {}))
}

fn step_done(generation: u64, step: u64) -> Message {
    let position = Some(v1::Position { stage: 0, step, generation });
    Message::StepDone(v1::StepDone { position, ..Default::default() })
}

fn captions(generation: u64, more: bool) -> Message {
    Message::EvaluationItems(v1::EvaluationItems { generation, more, ..Default::default() })
}

fn idle(generation: u64) -> Message {
    Message::Idle(v1::Idle { generation, ..Default::default() })
}

/// A message of one side.
enum Said {
    /// Of the coordinator; and whether it is not obsolete.
    There(v1::Directive, bool),
    /// Of the worker.
    Here(Message),
}

use Said::{Here, There};

#[test]
fn a_run_goes_through_its_generations() {
    let mut protocol = protocol();
    let halt = |generation| directive(generation, Kind::Halt(v1::Halt::default()));
    for (at, said) in [
        There(rendezvous(3), true),
        // Up to the window, and further with each report.
        There(train(3, 0, 4), true),
        Here(step_done(3, 1)),
        Here(step_done(3, 2)),
        There(train(3, 4, 2), true),
        Here(step_done(3, 6)),
        There(train(3, 6, 3), true),
        There(checkpoint(3, 1), true),
        There(evaluate(3, &[(0, 50), (50, 70)]), true),
        Here(step_done(3, 9)),
        Here(captions(3, true)),
        Here(captions(3, false)),
        Here(captions(3, false)),
        There(evaluate(3, &[]), true),
        There(advance(3, 1), true),
        There(halt(3), true),
        There(abandon(3), true),
        // A second Abandon is obsolete.
        There(abandon(3), false),
        Here(idle(3)),
        // Directives in flight when a worker releases a generation by itself are obsolete.
        There(rendezvous(4), true),
        Here(idle(4)),
        There(train(4, 0, 4), false),
        There(halt(4), false),
        There(abandon(4), false),
        There(abandon(3), false),
        There(rendezvous(9), true),
        There(finish(9), true),
    ]
    .into_iter()
    .enumerate()
    {
        match said {
            Here(message) => protocol.note(&message),
            There(directive, matters) => {
                let checked = protocol.check(directive.clone());
                assert_eq!(checked.map(|checked| checked.is_some()), Ok(matters), "{at}: {:?}", directive.directive);
            }
        }
    }
}

/// The violation that the last of these directives is.
fn violation(said: impl IntoIterator<Item = v1::Directive>) -> String {
    let mut protocol = protocol();
    let mut said = said.into_iter().peekable();
    loop {
        let checked = protocol.check(said.next().unwrap());
        match said.peek() {
            Some(_) => assert!(checked.is_ok(), "{checked:?}"),
            None => return checked.expect_err("it makes no sense").to_string(),
        }
    }
}

#[test]
fn what_does_not_come_where_it_may_is_named() {
    let long = checkpoint_named(&"\u{1b}x".repeat(1 << 20));
    for (said, expected) in [
        (vec![train(1, 0, 1)], "Train: of generation 1, before any Rendezvous"),
        (vec![abandon(1)], "Abandon: of generation 1, before any Rendezvous"),
        (vec![rendezvous(1), evaluate(2, &[])], "Evaluate: of generation 2, in generation 1"),
        (vec![rendezvous(2), evaluate(1, &[])], "Evaluate: of generation 1, in generation 2"),
        (vec![rendezvous(1), abandon(2)], "Abandon: of generation 2, where the last is 1"),
        (vec![rendezvous(1), abandon(1), train(1, 0, 1)], "Train: of generation 1, after Abandon"),
        (vec![rendezvous(1), rendezvous(1)], "Rendezvous: generation 1 after generation 1"),
        (vec![rendezvous(1), rendezvous(2)], "Rendezvous: generation 2 before the worker has let go of generation 1"),
        (vec![rendezvous(0)], "Rendezvous: generation 0 after generation 0"),
        (vec![finish(0), finish(0)], "Finish: after Finish"),
        (vec![rendezvous(1), checkpoint(1, 5), checkpoint(1, 5)], "Checkpoint: number 5 after number 5"),
        (vec![rendezvous(1), long], "Checkpoint: the checkpoint name \"\\u{1b}x"),
        (vec![rendezvous(1), evaluate(1, &[(0, 50)]), evaluate(1, &[])], "Evaluate: while 1 ranges of images"),
        (vec![rendezvous(1), evaluate(1, &[(50, 70), (0, 50)])], "Evaluate: the images 0..50 of 70, after 70"),
        (vec![rendezvous(1), evaluate(1, &[(0, 51)])], "Evaluate: the images 0..51 of 70"),
        (vec![rendezvous(1), train(1, 0, 5)], "Train: up to step 5 after a report of step 0, with a window of 4"),
        (vec![rendezvous(1), advance(1, 0)], "Advance: to stage 0 from stage 0"),
        (vec![rendezvous(1), advance(1, 2)], "Advance: stage 2 (from 0) of a run that has 2"),
    ] {
        let error = violation(said);
        assert!(error.starts_with(&format!("the coordinator broke the protocol: {expected}")), "{error}");
        assert!(error.len() < 1_000 && !error.contains(char::is_control), "{error}");
    }
}

fn checkpoint_named(name: &str) -> v1::Directive {
    directive(1, Kind::Checkpoint(v1::Checkpoint { checkpoint: 1, name: name.to_owned(), journal: None }))
}

#[test]
fn checkpoints_that_nobody_reports_are_not_taken_forever() {
    let mut protocol = protocol();
    protocol.check(rendezvous(1)).unwrap();
    let most = MAX_UNREPORTED_CHECKPOINTS as u64;
    (0..most).for_each(|number| assert!(protocol.check(checkpoint(1, number)).is_ok()));
    assert!(protocol.check(checkpoint(1, most)).is_err());
    protocol.note(&Message::CheckpointFailed(v1::CheckpointFailed { generation: 1, ..Default::default() }));
    assert!(protocol.check(checkpoint(1, most)).is_ok());
}

#[test]
fn other_settings_of_a_run_are_those_that_count() {
    let mut protocol = protocol();
    let wider = RunFile::parse(
        Path::new("run.yaml"),
        "name: test\noutput: /nowhere\nworkers: { min: 1, max: 2 }\n\
         data: { karpathy: { annotations: annotations.json, images: images } }\n\
         captioner: { preset: tiny }\nevaluator: { preset: tiny }\nstages:\n  \
         - { name: xe, objective: cross_entropy, steps: 90, batch: 4, optimizer: { learning_rate: 0.1 } }\n",
    );
    protocol.configure(&wider.unwrap());
    protocol.check(rendezvous(1)).unwrap();
    assert!(protocol.check(train(1, 0, 8)).is_ok());
}

/// Numbers, valid in a run or not.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..6_u64, 2 => 0..80_u64, 1 => Just(u64::MAX), 1 => Just(u64::from(u32::MAX)), 1 => any::<u64>()]
}

fn small() -> impl Strategy<Value = u32> {
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

fn any_rendezvous() -> impl Strategy<Value = Kind> {
    let position = prop::option::weighted(0.9, (small(), number(), number()));
    let start = prop::option::of((number(), number()));
    let source = prop::option::of(small());
    let peers = prop_oneof![4 => 0..3_usize, 1 => 0..2_000_usize];
    (small(), small(), source, text(), text(), position, start, peers).prop_map(
        |(rank, world_size, source_rank, checkpoint, checkpoint_sha256, position, start, peers)| {
            Kind::Rendezvous(v1::Rendezvous {
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

fn any_kind() -> impl Strategy<Value = Option<Kind>> {
    let ranges = prop::collection::vec((number(), number()), 0..4);
    let kind = prop_oneof![
        4 => any_rendezvous(),
        6 => (small(), number(), small(), small(), small()).prop_map(
            |(stage, first_step, steps, share_begin, share_end)| {
                Kind::Train(v1::Train { stage, first_step, steps, share_begin, share_end })
            }
        ),
        3 => (number(), ranges).prop_map(|(evaluation, ranges)| {
            let ranges = ranges.into_iter().map(|(begin, end)| v1::ImageRange { begin, end }).collect();
            Kind::Evaluate(v1::Evaluate { evaluation, ranges })
        }),
        3 => (number(), text()).prop_map(|(checkpoint, name)| Kind::Checkpoint(v1::Checkpoint { checkpoint, name, journal: None })),
        3 => small().prop_map(|stage| Kind::Advance(v1::Advance { stage })),
        1 => text().prop_map(|reason| Kind::Abandon(v1::Abandon { reason })),
        1 => text().prop_map(|reason| Kind::Halt(v1::Halt { reason })),
        1 => text().prop_map(|reason| Kind::Leave(v1::Leave { reason, orderly: false })),
    ];
    prop::option::weighted(0.95, kind)
}

/// A report of a worker, valid or not.
fn any_report() -> impl Strategy<Value = Message> {
    prop_oneof![
        3 => number().prop_map(idle),
        2 => (number(), number()).prop_map(|(generation, step)| step_done(generation, step)),
        1 => number().prop_map(|generation| captions(generation, false)),
        1 => (number(), small()).prop_map(|(generation, stage)| Message::Advanced(v1::Advanced { generation, stage })),
    ]
}

/// A directive that an honest coordinator might send next, so that invalid ones are tested in every
/// state.
fn honest(protocol: &Protocol, kind: u8) -> v1::Directive {
    let Some(generation) = &protocol.generation else { return rendezvous(1) };
    let (number, (stage, step)) = (generation.number, generation.granted);
    match kind % 5 {
        0 => rendezvous(number.saturating_add(1)),
        1 => {
            let order = v1::Train { stage, first_step: step, steps: 1, share_begin: 0, share_end: 2 };
            directive(number, Kind::Train(order))
        }
        2 => evaluate(number, &[(0, 50), (50, 70)]),
        3 => checkpoint(number, generation.checkpoint.map_or(0, |last| last.saturating_add(1))),
        _ => advance(number, stage + 1),
    }
}

/// A turn of the test below.
#[derive(Clone, Debug)]
enum Turn {
    Nonsense(v1::Directive),
    Report(Message),
    /// See [`honest`].
    Honest(u8),
}

fn turn() -> impl Strategy<Value = Turn> {
    let nonsense = (number(), any_kind());
    prop_oneof![
        3 => nonsense.prop_map(|(generation, directive)| Turn::Nonsense(v1::Directive { generation, directive })),
        1 => any_report().prop_map(Turn::Report),
        4 => any::<u8>().prop_map(Turn::Honest),
    ]
}

proptest! {
    #[test]
    fn whatever_a_coordinator_says_what_is_accepted_is_within_the_run(turns in prop::collection::vec(turn(), 0..60)) {
        let mut protocol = protocol();
        // The point to which the accepted directives lead.
        let (mut at, mut last) = (None, 0);
        for turn in turns {
            let directive = match turn {
                Turn::Nonsense(directive) => directive,
                Turn::Report(report) => {
                    protocol.note(&report);
                    continue;
                }
                Turn::Honest(kind) => {
                    if kind % 5 == 0 {
                        protocol.note(&idle(u64::MAX));
                    }
                    honest(&protocol, kind)
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
                    within_the_run(checked.kind(), generation, &mut at, &mut last);
                }
            }
        }
    }
}

/// Checks an accepted directive; `at` is the point to which the ones before lead, `last` their
/// generation.
fn within_the_run(kind: &Kind, generation: u64, at: &mut Option<(u32, u64)>, last: &mut u64) {
    match kind {
        Kind::Rendezvous(order) => {
            assert!(generation > *last && order.rank < order.world_size && order.world_size <= MAX_WORKERS);
            assert!(order.source_rank.is_none_or(|source| source < order.world_size));
            assert!(order.peers.len() < order.world_size as usize);
            assert!(!order.checkpoint.contains(['/', '\\', '\0']) && !order.checkpoint.starts_with('.'));
            let position = order.position.unwrap();
            assert!(position.step <= STAGES[position.stage as usize].0);
            let start = order.sequence_start.unwrap_or_default();
            assert!(start.step <= position.step && start.epoch <= 54);
            (*at, *last) = (Some((position.stage, position.step)), generation);
        }
        Kind::Train(order) => {
            let (steps, batch) = STAGES[order.stage as usize];
            assert_eq!((Some((order.stage, order.first_step)), generation), (*at, *last));
            let end = order.first_step + u64::from(order.steps);
            assert!(order.steps > 0 && end <= steps && order.share_begin < order.share_end && order.share_end <= batch);
            *at = Some((order.stage, end));
        }
        Kind::Evaluate(order) => {
            assert_eq!(generation, *last);
            let images: u64 = order.ranges.iter().map(|range| range.end - range.begin).sum();
            assert!(images <= IMAGES && order.ranges.iter().all(|range| range.end <= IMAGES));
        }
        Kind::Checkpoint(order) => {
            assert_eq!(generation, *last);
            assert_eq!(Path::new(&order.name).file_name().and_then(|name| name.to_str()), Some(&*order.name));
        }
        Kind::Advance(order) => {
            assert_eq!((Some(order.stage), generation), (at.map(|(stage, _)| stage + 1), *last));
            assert!((order.stage as usize) < STAGES.len());
            *at = Some((order.stage, 0));
        }
        Kind::Abandon(v1::Abandon { reason }) | Kind::Halt(v1::Halt { reason }) => {
            assert!(generation == *last && reason.is_empty());
        }
        Kind::Finish(_) | Kind::Leave(_) => {}
    }
}
