//! The guard: rules that warn, pause the run, or roll back the stage.
//!
//! Stages are written as `testing::stage(NAME, STEPS, BATCH, CHECKPOINT_EVERY, EVALUATE_EVERY)`.

use config::{GuardAction, Rule, Stage};
use dico_engine::{
    Action, Command, Event, EventKind, Outcome, RefusalKind, RequestId, Time,
    record::{Record, StateSource},
};
use proto::v1;

use super::position_at;
use crate::simulation::{cluster::Cluster, network::Direction, scenario::Scenario, score, worker::Activity};
use config::testing;

/// A rule that each step violates, because all scores are below 7. It fires at the first step.
fn violated_rule(action: GuardAction) -> Rule {
    Rule { metric: "kl".into(), above: None, below: Some(7.0), for_: 1, action }
}

#[test]
fn the_status_shows_the_number_of_steps_of_a_stage_that_ended_early() {
    let stage = Stage { guard: vec![violated_rule(GuardAction::Rollback)], ..testing::stage("a", 50, 8, None, None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![stage]));
    assert_eq!(cluster.status().steps, 50);
    cluster.start_member();
    cluster.run_to_end();
    let status = cluster.status();
    assert_eq!((status.step, status.steps), (0, 0));
}

#[test]
fn a_paused_run_stays_paused_through_joins_failures_and_restarts() {
    let stage = Stage { guard: vec![violated_rule(GuardAction::Pause)], ..testing::stage("a", 50, 8, None, None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![stage]));
    let while_paused = Time::from_secs(20);
    let first = cluster.start_member();
    cluster.run_for(while_paused);
    let status = cluster.status();
    assert_eq!((status.state(), status.step), (v1::RunState::Paused, 8), "the granted steps are trained");
    assert!(status.reason.contains("kl is") && status.reason.contains("below 7"), "{}", status.reason);
    assert!(cluster.state().readiness().is_err());
    assert_eq!(cluster.checkpoint_names(), ["0-a-00000008"]);

    cluster.start_member();
    cluster.run_for(while_paused);
    cluster.end_worker(first);
    cluster.run_for(while_paused);
    cluster.kill_coordinator(Time::from_secs(1));
    cluster.run_for(while_paused);
    let status = cluster.status();
    assert_eq!((status.state(), status.step), (v1::RunState::Paused, 8));
    assert_eq!(cluster.generation_starts().len(), 4);

    // The rule has fired already, so it does not pause the run again.
    cluster.resume();
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Paused), cluster.count_events(EventKind::Resumed)), (1, 1));
}

#[test]
fn a_paused_run_can_be_stopped_and_only_a_paused_run_resumed() {
    let stage = Stage { guard: vec![violated_rule(GuardAction::Pause)], ..testing::stage("a", 50, 8, None, None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![stage]));
    let resume = Event::Control { request: RequestId(0), command: Command::Resume };
    let actions = cluster.coordinator.engine.as_mut().unwrap().on_event(Time::ZERO, resume);
    let [Action::Refuse { refusal, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert!(refusal.reason.contains("not paused"), "{}", refusal.reason);
    cluster.start_member();
    cluster.run_until(|cluster| cluster.status().state() == v1::RunState::Paused);
    cluster.handle_event(Event::Shutdown);
    cluster.run_until(|cluster| cluster.outcome.is_some());
    assert_eq!(cluster.outcome, Some(Outcome::Stopped));
    assert!(cluster.invariants.is_paused, "the next coordinator must restore the pause");
}

#[test]
fn a_rollback_ends_the_stage_with_the_last_state_within_bounds() {
    let stage =
        Stage { guard: vec![violated_rule(GuardAction::Rollback)], ..testing::stage("b", 50, 8, Some(1), None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 4, 8, None, None), stage]));
    cluster.start_member();
    cluster.run_to_end();
    // The statistics of the first step describe the stage's initial state, which is the final state
    // of the stage before.
    assert_eq!(cluster.invariants.selected_steps, [(1, 0)].into());
    assert_eq!(cluster.generation_starts().last().unwrap().0, position_at(0, 4));
    assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(0, 4)));
    assert_eq!(
        cluster.checkpoint_names(),
        ["0-a-00000004", "1-b-00000001"],
        "the last checkpoint of each stage is kept for the user"
    );
    let triggered = cluster.count_records(|record| matches!(record, Record::Guard { .. }));
    assert_eq!(triggered, 1, "a rule fired after the end of its stage");
}

#[test]
fn a_rule_that_warns_or_pauses_does_not_change_with_which_state_a_stage_ends() {
    for action in [GuardAction::Warn, GuardAction::Pause] {
        // All evaluations violate the rule.
        let rule = Rule { metric: "cider".into(), ..violated_rule(action) };
        let stage =
            Stage { metric: Some("cider".into()), guard: vec![rule], ..testing::stage("a", 20, 8, None, Some(5)) };
        let scenario = |salt| Scenario { salt, ..Scenario::without_faults(testing::run_file(vec![stage.clone()])) };
        let is_suitable = |scenario: &Scenario| scenario.expected_best_step(&stage, 0) == 20;
        let mut cluster = Cluster::from_scenario((0..).map(scenario).find(is_suitable).unwrap());
        cluster.start_member();
        if action == GuardAction::Pause {
            cluster.run_until(|cluster| cluster.status().state() == v1::RunState::Paused);
            cluster.resume();
        }
        cluster.run_to_end();
        assert_eq!(
            (cluster.invariants.selected_steps.clone(), cluster.committed_positions().len()),
            ([].into(), 20),
            "{action:?}"
        );
        assert_eq!(cluster.checkpoint_names().last(), Some(&"0-a-00000020"));
    }
}

/// The step to which a run of one stage is rolled back. The scores are those of the first salt for
/// which `is_suitable` is true.
fn rollback_step(stage: Stage, keep: u32, is_suitable: impl Fn(u64) -> bool) -> u64 {
    let mut file = testing::run_file(vec![stage]);
    file.checkpoints.keep = keep;
    let salt = (0..).find(|salt| is_suitable(*salt)).unwrap();
    let mut cluster = Cluster::from_scenario(Scenario { salt, ..Scenario::without_faults(file) });
    cluster.start_member();
    cluster.run_to_end();
    cluster.invariants.selected_steps[&0]
}

#[test]
fn the_checkpoint_that_a_rollback_may_need_is_kept() {
    let above = |metric: &str, bound, for_| Rule {
        metric: metric.into(),
        above: Some(bound),
        below: None,
        for_,
        action: GuardAction::Rollback,
    };
    // The higher the score, the better is the state by the metric, but scores above 4.5 are beyond
    // the rule's bound. The first of the two states beyond the bound has the best score so far.
    let guard = vec![above("cider", 4.5, 2)];
    let stage = Stage { metric: Some("cider".into()), guard, ..testing::stage("a", 50, 8, None, Some(10)) };
    let scores = |salt| [10, 20, 30].map(|step| score(salt, position_at(0, step)));
    assert_eq!(rollback_step(stage, 1, |salt| matches!(scores(salt), [..4.5, (4.5..), (4.5..)])), 10);

    // The statistics of steps 1 to 5 are within the bound, so the state at step 4 is the last one
    // within it. The rule needs six steps to fire, more than the number of checkpoints that are
    // kept.
    let stage = Stage { guard: vec![above("kl", 2.5, 6)], ..testing::stage("a", 50, 8, Some(1), None) };
    let is_beyond_bound = |salt| move |step| score(salt + 1, position_at(0, step)) > 2.5;
    let is_suitable = |salt| !(1..=5).any(is_beyond_bound(salt)) && (6..=11).all(is_beyond_bound(salt));
    assert_eq!(rollback_step(stage, 2, is_suitable), 4);

    // Whether a state that was just saved is within the bound is known only after the next step.
    let stage = Stage { guard: vec![above("kl", 2.5, 1)], ..testing::stage("a", 50, 8, Some(1), None) };
    assert_eq!(rollback_step(stage, 1, |salt| !(1..=5).any(is_beyond_bound(salt)) && is_beyond_bound(salt)(6)), 4);
}

#[test]
fn a_checkpoint_saved_while_its_stage_ends_is_kept_as_the_last() {
    let stage = Stage { guard: vec![violated_rule(GuardAction::Rollback)], ..testing::stage("a", 4, 8, Some(1), None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![stage, testing::stage("b", 3, 8, None, None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| matches!(cluster.workers[&first].activity, Activity::Computing(_)));
    // The report of the step, which ends the stage, arrives only after the checkpoint is written.
    cluster.partition(first, Direction::ToCoordinator);
    cluster.run_until(|cluster| cluster.disk.checkpoints.len() == 1);
    assert!(cluster.invariants.selected_steps.is_empty());
    cluster.heal(first, Direction::ToCoordinator);
    cluster.run_until(|cluster| !cluster.invariants.selected_steps.is_empty());
    assert_eq!((cluster.invariants.selected_steps.clone(), cluster.disk.checkpoints.len()), ([(0, 0)].into(), 1));
    cluster.run_to_end();
    assert_eq!(cluster.checkpoint_names(), ["0-a-00000001", "1-b-00000003"]);
}

#[test]
fn a_rollback_that_waits_for_the_end_of_a_pause_survives_restarts_and_failures() {
    // Both rules fire at the first step. The steps that were granted by then are trained, and their
    // checkpoints are disqualified, too.
    let guard = [GuardAction::Pause, GuardAction::Rollback].map(violated_rule).to_vec();
    let stage = Stage { guard, ..testing::stage("b", 50, 8, Some(2), None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 4, 8, None, None), stage]));
    let worker = cluster.start_member();
    let while_paused = Time::from_secs(20);
    cluster.run_for(while_paused);
    assert_eq!((cluster.status().state(), cluster.status().step), (v1::RunState::Paused, 4));
    cluster.kill_coordinator(Time::from_secs(1));
    cluster.run_for(while_paused);
    cluster.end_worker(worker);
    cluster.start_member();
    cluster.run_for(while_paused);
    cluster.resume();
    cluster.run_to_end();
    assert_eq!(cluster.invariants.selected_steps, [(1, 0)].into());
}

#[test]
fn a_rollback_without_checkpoints_returns_to_the_seed() {
    let stage = Stage { guard: vec![violated_rule(GuardAction::Rollback)], ..testing::stage("a", 50, 8, None, None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![stage]));
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.generation_starts().last(), Some(&(position_at(0, 0), StateSource::Seed)));
    assert_eq!(cluster.committed_positions(), []);
}

#[test]
fn a_rule_that_warns_is_recorded_once() {
    let stage = Stage { guard: vec![violated_rule(GuardAction::Warn)], ..testing::stage("a", 5, 8, None, None) };
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![stage]));
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.count_records(|record| matches!(record, Record::Guard { .. })), 1);
    assert_eq!(
        cluster
            .count_records(|record| matches!(record, Record::Guard { position, .. } if *position == position_at(0, 1))),
        1
    );
}
