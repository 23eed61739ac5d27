//! Orders of actions on which a crash between two of them depends. The simulation has all other
//! tests of the engine.

use std::net::{IpAddr, Ipv4Addr};

use config::{GuardAction, Rule, Stage, testing};
use proto::PROTOCOL_VERSION;
use summary_statistics::Summary;

use super::*;
use crate::types::RequestId;

/// An engine with members, whose sessions are numbered from 0.
struct Members {
    engine: Engine,
    generation: u64,
}

impl Members {
    /// The members train the steps that are granted at first.
    fn train(stage: Stage, count: u64) -> Self {
        let mut file = testing::run_file(vec![stage]);
        file.workers.min = count as u32;
        let mut members = Self { engine: Engine::new(file, RestoredRun::default(), 1), generation: 1 };
        for session in 0..count {
            let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..v1::JoinRequest::default() };
            let (address, generated_join_key) = (IpAddr::V4(Ipv4Addr::LOCALHOST), session.to_string());
            let event = Event::Join { request: RequestId(session), address, generated_join_key, join };
            let actions = members.engine.on_event(Time::ZERO, event);
            let Some(Action::Admit { response, .. }) = actions.into_iter().next() else { panic!("not admitted") };
            let (session_token, store_address) = (response.session_token, format!("host:{session}"));
            let attach = v1::Attach { session_token, store_address, ..v1::Attach::default() };
            members.engine.on_event(Time::ZERO, Event::Attach { session: SessionId(session), attach });
        }
        members.all_ready();
        members
    }

    /// All members of the generation report that they are ready.
    fn all_ready(&mut self) {
        let sessions: Vec<SessionId> = self.engine.state.members.iter().map(|(_, member)| member.session).collect();
        let start = self.engine.state.generations.current.as_ref().unwrap().start;
        for session in sessions {
            let position = Some(start.in_generation(self.generation));
            self.send(session.0, Message::Ready(v1::Ready { generation: self.generation, position }));
        }
    }

    fn send(&mut self, session: u64, message: Message) -> Vec<Action> {
        self.engine.on_event(Time::ZERO, Event::Message { session: SessionId(session), message })
    }

    /// A member reports step 1 with a `kl` of 3.
    fn report_step(&mut self, session: u64) -> Vec<Action> {
        let position = Some(v1::Position { stage: 0, step: 1, generation: self.generation });
        let summaries = [("kl".to_owned(), (&Summary::of([3.0])).into())].into();
        self.send(session, Message::StepDone(v1::StepDone { position, summaries, ..v1::StepDone::default() }))
    }

    /// A member reports that it has hashed, or written, the state of the save in progress.
    fn report_save(&mut self, session: u64) -> Vec<Action> {
        let checkpoint = self.engine.state.checkpoints.in_progress.as_ref().unwrap().number;
        let done = v1::CheckpointDone { generation: self.generation, checkpoint, parameters_sha256: "ab".into() };
        self.send(session, Message::CheckpointDone(done))
    }
}

/// The index of the first action for which `matches` is true.
fn index(actions: &[Action], matches: impl Fn(&Action) -> bool) -> usize {
    actions.iter().position(matches).unwrap_or_else(|| panic!("no such action: {actions:?}"))
}

#[test]
fn a_save_that_waits_only_for_a_member_whose_failure_ends_the_run_is_recorded() {
    let mut members = Members::train(testing::stage("a", 9, 8, Some(1), None), 2);
    members.report_step(0);
    members.report_step(1);
    members.report_save(0);
    let fatal = |generation| {
        Message::Failed(v1::Failed { generation, reason: "no memory".into(), fatal: true, ..v1::Failed::default() })
    };
    // The run fails at the third generation with the same fatal failure.
    for generation in [7, 8] {
        let progress_count = members.engine.state.history.progress_count;
        members.engine.state.generations.failure_counter.record(progress_count, generation, "no memory", true);
    }
    let actions = members.send(1, fatal(1));
    let saved = index(&actions, |action| matches!(action, Action::Record(Record::Saved(_))));
    let ended = index(&actions, |action| matches!(action, Action::Record(Record::RunEnded { .. })));
    assert!(saved < ended, "{actions:?}");
    assert!(members.engine.state.generations.is_over());
}

#[test]
fn all_rules_that_fire_are_recorded_before_the_pause() {
    let rule = |action| Rule { metric: "kl".into(), above: Some(2.0), below: None, for_: 1, action };
    let guard = [GuardAction::Pause, GuardAction::Rollback].map(rule).to_vec();
    let mut members = Members::train(Stage { guard, ..testing::stage("a", 9, 8, None, None) }, 1);
    let actions = members.report_step(0);
    let is_rollback = |action: &Action| matches!(action, Action::Record(Record::Guard { rule, .. }) if rule.action == GuardAction::Rollback);
    let paused = index(&actions, |action| matches!(action, Action::Record(Record::Paused { .. })));
    assert!(index(&actions, is_rollback) < paused, "{actions:?}");
}

#[test]
fn the_end_of_a_run_is_recorded_before_any_worker_learns_of_it() {
    let mut members = Members::train(testing::stage("a", 1, 8, None, None), 1);
    members.report_step(0);
    let mut actions = members.report_save(0);
    // The stage ends with an evaluation of no images.
    if let Some(evaluation) = members.engine.state.evaluation.as_ref().map(|evaluation| evaluation.number) {
        let scored = Event::Scored { evaluation, metrics: BTreeMap::new() };
        actions = members.engine.on_event(Time::ZERO, scored);
    }
    let is_finish = |action: &Action| {
        let Action::Send { directive, .. } = action else { return false };
        matches!(directive.directive, Some(Directive::Finish(_)))
    };
    let recorded = index(&actions, |action| matches!(action, Action::Record(Record::RunEnded { .. })));
    assert!(recorded < index(&actions, is_finish), "{actions:?}");
}
