//! Model selection and early stopping: stages that end with their best state.

use config::Stage;
use dico_engine::{
    EventKind, Time,
    record::{Record, StateSource},
};

use super::position_at;
use crate::simulation::{cluster::Cluster, scenario::Scenario};
use config::testing;

/// A cluster with two stages, of 20 and 3 steps. The first stage is evaluated every 5 steps, and
/// the state at step 5 is the best.
fn with_best_state_first(patience: Option<u32>) -> Cluster {
    let (steps, batch, checkpoint_every, evaluate_every) = (20, 8, None, Some(5));
    let first = testing::stage("a", steps, batch, checkpoint_every, evaluate_every);
    let first = Stage { metric: Some("cider".into()), patience, ..first };
    let second = testing::stage("b", 3, batch, None, None);
    let mut file = testing::run_file(vec![first, second]);
    file.checkpoints.keep = 1;
    let scenario = |salt| Scenario { salt, ..Scenario::without_faults(file.clone()) };
    let is_suitable = |scenario: &Scenario| {
        let stage = Stage { patience: None, ..scenario.file.stages[0].clone() };
        scenario.expected_best_step(&stage, 0) == 5
    };
    Cluster::from_scenario((0..).map(scenario).find(is_suitable).unwrap())
}

#[test]
fn a_stage_ends_with_its_best_state_and_the_next_stage_starts_from_it() {
    let mut cluster = with_best_state_first(None);
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.generation_starts()[1..], [(position_at(0, 5), StateSource::Checkpoint("0-a-00000005".into()))]);
    assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(1, 3)));
    assert_eq!(cluster.committed_positions().len(), 5 + 3);
    // The best checkpoint is kept although `keep` is 1; the last of the stage is kept for the user.
    assert_eq!(cluster.checkpoint_names(), ["0-a-00000005", "0-a-00000020", "1-b-00000003"]);
    assert_eq!(
        cluster.state().checkpoints.superseded.iter().map(|saved| saved.position).collect::<Vec<_>>(),
        [position_at(0, 20)]
    );
    let (committed_steps, batch) = (5 + 3, 8);
    assert_eq!(cluster.state().samples_committed(), committed_steps * batch);
    assert_eq!(cluster.count_events(EventKind::RolledBack), 0, "model selection counted as a rollback");
}

#[test]
fn patience_ends_a_stage_early() {
    let mut cluster = with_best_state_first(Some(2));
    cluster.start_member();
    cluster.run_to_end();
    let evaluated: Vec<_> = cluster.evaluations().iter().map(|(position, _)| *position).collect();
    assert_eq!(evaluated, [position_at(0, 5), position_at(0, 10), position_at(0, 15), position_at(1, 3)]);
    assert_eq!(cluster.invariants.selected_steps, [(0, 5)].into());
}

#[test]
fn a_restarted_coordinator_ends_the_stage_that_the_crashed_one_had_to_end() {
    let mut cluster = with_best_state_first(None);
    cluster.start_member();
    cluster.run_until(|cluster| cluster.state().history.committed == position_at(0, 20) && cluster.is_scoring());
    // The coordinator crashes after it has recorded the evaluation of the last step.
    cluster.coordinator.actions_until_crash = Some(1);
    cluster.run_until(|cluster| cluster.coordinator.engine.is_none());
    let last_record = cluster.coordinator.records.last();
    assert!(matches!(last_record, Some(Record::Evaluated { position, .. }) if *position == position_at(0, 20)));
    cluster.run_to_end();
    assert_eq!(
        (cluster.invariants.selected_steps.clone(), cluster.count_events(EventKind::StageEndedEarly)),
        ([(0, 5)].into(), 1)
    );
    assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(1, 3)));
}

#[test]
fn the_last_state_of_a_stage_is_kept_for_the_user_across_restarts() {
    let mut cluster = with_best_state_first(None);
    cluster.start_member();
    cluster.run_until(|cluster| cluster.invariants.selected_steps.contains_key(&0));
    cluster.kill_coordinator(Time::from_secs(1));
    cluster.run_to_end();
    assert_eq!(cluster.checkpoint_names()[..2], ["0-a-00000005", "0-a-00000020"]);
}
