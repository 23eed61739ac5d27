//! Tests that no message of a worker crashes the coordinator.

use std::collections::BTreeMap;

use dico_engine::{
    Action, Engine, Event, RequestId, SessionId, Time, restored::RestoredRun, state::generations::RunPhase,
};
use proptest::prelude::*;
use proto::{PROTOCOL_VERSION, v1, v1::worker_message::Message};

use super::{WORKER_ADDRESS, scripted::session_token_of};
use config::testing;

/// Messages of all kinds, with arbitrary numbers.
fn arbitrary_message() -> impl Strategy<Value = Message> {
    let number = || prop_oneof![4 => 0..4_u64, 1 => Just(u64::MAX)];
    let position = (0..3_u32, number(), number());
    (0..13, number(), number(), position, any::<u32>(), any::<f64>(), any::<bool>()).prop_map(
        |(kind, generation, id, (stage, step, position_generation), samples, value, flag)| {
            let position = flag.then_some(v1::Position { stage, step, generation: position_generation });
            let text = format!("{value}\n");
            match kind {
                0 => Message::Attach(v1::Attach::default()),
                1 => Message::Heartbeat(v1::Heartbeat { phase: samples.cast_signed(), position }),
                2 => Message::Ready(v1::Ready { generation, position }),
                3 => {
                    let (loss_sum, loss_weight, seconds) = (value, value, value);
                    let report =
                        v1::StepDone { position, samples, loss_sum, loss_weight, seconds, ..Default::default() };
                    Message::StepDone(report)
                }
                4 => {
                    let scores = [("pac_s".to_owned(), value)].into();
                    let items = vec![v1::EvaluationItem { image: text, scores, ..Default::default() }];
                    let range = flag.then_some(v1::ImageRange { begin: step, end: position_generation });
                    Message::EvaluationItems(v1::EvaluationItems {
                        generation,
                        evaluation: id,
                        range,
                        items,
                        more: false,
                    })
                }
                5 => {
                    // The ranges of an evaluation of 70 images.
                    let (begin, end) = if flag { (0, 50) } else { (50, 70) };
                    let range = Some(v1::ImageRange { begin, end });
                    Message::EvaluationItems(v1::EvaluationItems {
                        generation,
                        evaluation: id,
                        range,
                        items: vec![],
                        more: samples % 2 == 0,
                    })
                }
                6 => Message::CheckpointDone(v1::CheckpointDone {
                    generation,
                    checkpoint: id,
                    parameters_sha256: text.clone(),
                }),
                7 => Message::Advanced(v1::Advanced { generation, stage }),
                8 => Message::Idle(v1::Idle { generation, position, saving: flag.then_some(id) }),
                9 => {
                    let damaged_checkpoint = if samples % 2 == 0 { String::new() } else { "0-a-00000001".into() };
                    Message::Failed(v1::Failed {
                        generation,
                        reason: text,
                        fatal: flag,
                        damaged_checkpoint,
                        unreachable_workers: vec![stage],
                    })
                }
                10 => Message::Leaving(v1::Leaving { reason: text }),
                11 => Message::CheckpointFailed(v1::CheckpointFailed { generation, checkpoint: id, reason: text }),
                _ => Message::Finished(v1::Finished {}),
            }
        },
    )
}

/// Answers a request for scores.
fn score(engine: &mut Engine, actions: &[Action]) {
    for action in actions {
        if let Action::Score { evaluation, .. } = action {
            engine.on_event(Time::ZERO, Event::Scored { evaluation: *evaluation, metrics: BTreeMap::new() });
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_messages_do_not_crash_the_coordinator(
        messages in prop::collection::vec((0..4_u64, arbitrary_message(), any::<bool>()), 0..150),
    ) {
        let stages = vec![testing::stage("a", 2, 8, Some(1), Some(1)), testing::stage("b", 1, 8, None, None)];
        let mut engine = Engine::new(testing::run_file(stages), RestoredRun::default(), 0);
        let (mut sessions, mut last_session) = (vec![SessionId(0); 4], 0);
        for (worker, message, is_valid) in messages {
            let session = &mut sessions[worker as usize];
            if engine.state().members.worker_id_of(*session).is_none() {
                last_session += 1;
                *session = SessionId(last_session);
                let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
                let event = Event::Join { request: RequestId(last_session), address: WORKER_ADDRESS, generated_join_key: last_session.to_string(), join };
                let session_token = session_token_of(&engine.on_event(Time::ZERO, event));
                let store_address = "host:1".into();
                let data_set = Some(v1::DataSet { validation_images: 70, ..Default::default() });
                let attach = v1::Attach { session_token, store_address, data_set, ..Default::default() };
                engine.on_event(Time::ZERO, Event::Attach { session: *session, attach });
            }
            // Some messages are valid, so that the others arrive in each phase of a generation.
            let generation = engine.state().generations.current.as_ref().filter(|_| is_valid);
            let message = generation.map_or(message, |generation| {
                let (number, start) = (generation.number, generation.start);
                match engine.state().generations.phase {
                    RunPhase::Waiting => Message::Idle(v1::Idle { generation: number, position: None, saving: None }),
                    _ => Message::Ready(v1::Ready { generation: number, position: Some(start.in_generation(number)) }),
                }
            });
            let actions = engine.on_event(Time::ZERO, Event::Message { session: *session, message });
            for action in actions {
                match action {
                    Action::KeepCaptions { range, has_more: false, .. } => {
                        let actions = engine.on_event(Time::ZERO, Event::CaptionsKept { range });
                        score(&mut engine, &actions);
                    }
                    action => score(&mut engine, &[action]),
                }
            }
            assert_ne!(engine.state().status(Time::ZERO).state(), v1::RunState::Unspecified);
            assert!(engine.state().samples_committed() <= 2 * 8 + 8);
        }
    }
}
