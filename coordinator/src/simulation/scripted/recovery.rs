//! Failures of processes and storage, and recovery from them.
//!
//! Stages are written as `testing::stage(NAME, STEPS, BATCH, CHECKPOINT_EVERY, EVALUATE_EVERY)`.

use config::Stage;
use dico_engine::{
    EventKind, Outcome, Time,
    record::{Record, StateSource},
};

use super::position_at;
use crate::simulation::{
    ProcessId, UpdateHistory,
    cluster::{Cluster, Trace},
    network::Direction,
    scenario::Scenario,
    worker::Activity,
};
use config::testing;

#[test]
fn a_run_resumes_from_the_last_checkpoint_when_no_member_is_left() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| cluster.state().history.committed.step == 13);
    cluster.end_worker(first);
    cluster.start_member();
    cluster.run_to_end();
    let checkpoint = StateSource::Checkpoint("0-a-00000010".into());
    assert_eq!(cluster.generation_starts(), [(position_at(0, 0), StateSource::Seed), (position_at(0, 10), checkpoint)]);
    assert!(cluster.invariants.steps_given_up >= 3);
}

#[test]
fn different_parameters_of_two_members_fail_the_run() {
    let mut file = testing::run_file(vec![testing::stage("a", 2, 8, None, None)]);
    file.workers.min = 2;
    let mut cluster = Cluster::from_run_file(file);
    cluster.start_member();
    let corrupted = cluster.start_member();
    cluster.run_until(|cluster| matches!(cluster.workers[&corrupted].activity, Activity::CopyingState(_)));
    cluster.workers.get_mut(&corrupted).unwrap().history[0].generation = 99;
    cluster.run_until(|cluster| cluster.outcome.is_some());
    let Some(Outcome::Failed(reason)) = cluster.outcome else { panic!("{:?}", cluster.outcome) };
    assert!(reason.contains("differ") && reason.contains("worker 1"), "{reason}");
}

#[test]
fn a_repeated_fatal_failure_fails_the_run() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 2, 8, None, None)]));
    for generation in 1..=3 {
        assert_eq!(cluster.outcome, None);
        let worker = cluster.start_member();
        cluster.run_until(|cluster| cluster.workers[&worker].generation == Some(generation));
        cluster.fail_worker(worker, "no memory\nleft");
        cluster.run_for(Time::from_secs(1));
    }
    cluster.run_until(|cluster| cluster.outcome.is_some());
    let Some(Outcome::Failed(reason)) = cluster.outcome else { panic!("{:?}", cluster.outcome) };
    assert!(reason.contains("no memory left"), "{reason}");
}

/// Two workers save the same state. `fail` makes the first worker or the coordinator fail just
/// before the first worker saves. Then the second worker saves, and the first worker continues.
/// Asserts that the first worker does not change the second worker's checkpoints.
fn check_that_a_late_save_changes_nothing(fail: impl Fn(&mut Cluster, ProcessId)) {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 9, 8, Some(3), None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| matches!(cluster.workers[&first].activity, Activity::CopyingState(_)));
    cluster.workers.get_mut(&first).unwrap().is_training_blocked = true;
    fail(&mut cluster, first);
    cluster.start_member();
    cluster.run_until(|cluster| cluster.count_records(|record| matches!(record, Record::Saved(_))) == 1);
    let checkpoints_before = cluster.disk.checkpoints.clone();
    cluster.resume_worker(first);
    cluster.run_until(|cluster| !cluster.is_saver_idle(first));
    cluster.run_until(|cluster| cluster.is_saver_idle(first));
    for (name, history) in checkpoints_before {
        assert_eq!(cluster.disk.checkpoints.get(&name), Some(&history), "{name}");
    }
    cluster.run_to_end();
}

#[test]
fn a_late_save_of_a_disconnected_worker_changes_no_recorded_checkpoint() {
    check_that_a_late_save_changes_nothing(|cluster, first| {
        let session = cluster.workers[&first].session().unwrap();
        let (coordinator_notices, worker_notices) = (true, true);
        cluster.reset_session(session, coordinator_notices, worker_notices);
    });
}

#[test]
fn a_late_save_for_an_earlier_coordinator_changes_no_recorded_checkpoint() {
    check_that_a_late_save_changes_nothing(|cluster, _| {
        cluster.kill_coordinator(Time::from_secs(1));
        cluster.run_until(|cluster| cluster.coordinator.engine.is_some());
    });
}

/// A disconnected member trains the steps that it was granted. Meanwhile the other one continues
/// the run from an older state.
#[test]
fn a_state_on_another_branch_is_refused() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 500, 8, None, None)]));
    let (first, second) = (cluster.start_member(), cluster.start_member());
    let disconnect = |cluster: &mut Cluster, worker| {
        [Direction::ToCoordinator, Direction::ToWorker].map(|direction| cluster.partition(worker, direction))
    };
    let reconnect = |cluster: &mut Cluster, worker| {
        [Direction::ToCoordinator, Direction::ToWorker].map(|direction| cluster.heal(worker, direction))
    };
    cluster.run_until(|cluster| cluster.state().history.committed.step >= 10 && cluster.state().members.len() == 2);
    disconnect(&mut cluster, second);
    cluster.run_until(|cluster| cluster.state().generations.last_number == 3);
    let branch_point = cluster.state().history.committed.step;
    cluster.run_until(|cluster| cluster.state().history.committed.step >= branch_point + 20);
    disconnect(&mut cluster, first);
    cluster.run_until(|cluster| cluster.state().members.is_empty());
    reconnect(&mut cluster, second);
    cluster.run_until(|cluster| {
        cluster.state().generations.last_number == 4 && cluster.state().history.committed.step > branch_point
    });
    reconnect(&mut cluster, first);
    cluster.run_to_end();
}

#[test]
fn a_run_resumes_from_the_checkpoint_before_a_damaged_one() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 20, 8, Some(5), None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| cluster.state().history.committed.step == 13);
    cluster.disk.damaged.insert("0-a-00000010".into());
    cluster.end_worker(first);
    cluster.start_member();
    cluster.run_to_end();
    let from_checkpoint = |step: u64| (position_at(0, step), StateSource::Checkpoint(format!("0-a-{step:08}")));
    assert_eq!(cluster.generation_starts()[1..], [from_checkpoint(10), from_checkpoint(5)]);
    assert_eq!(cluster.count_events(EventKind::Damaged), 1);
    assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(0, 20)));
}

#[test]
fn a_run_that_cannot_save_waits_until_it_can() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 20, 8, Some(5), None)]));
    cluster.start_member();
    cluster.disk.is_full = true;
    cluster.run_for(Time::from_secs(100));
    // Training continued during the first attempt.
    assert!((5..=10).contains(&cluster.state().history.committed.step), "{}", cluster.state().history.committed);
    assert_eq!((cluster.count_events(EventKind::SaveFailed), cluster.count_events(EventKind::SavedAgain)), (1, 0));
    cluster.disk.is_full = false;
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::SaveFailed), cluster.count_events(EventKind::SavedAgain)), (1, 1));
    assert_eq!(cluster.generation_starts().len(), 1);
}

/// A member completes a checkpoint that an earlier coordinator has ordered.
#[test]
fn a_coordinator_ignores_a_checkpoint_that_it_has_not_ordered() {
    let mut file = testing::run_file(vec![testing::stage("a", 20, 8, Some(5), Some(2))]);
    file.workers.min = 2;
    let mut cluster =
        Cluster::from_scenario(Scenario { max_saving_time: Time::from_secs(60), ..Scenario::without_faults(file) });
    let (first, second) = (cluster.start_member(), cluster.start_member());
    cluster.run_until(|cluster| !cluster.is_saver_idle(first));
    cluster.kill_coordinator(Time::from_secs(1));
    cluster.end_worker(second);
    cluster.run_until(|cluster| cluster.is_saver_idle(first));
    cluster.run_for(Time::from_secs(1));
    assert!(cluster.is_member(first));
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.count_events(EventKind::Lost), 0);
    assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(0, 20)));
}

#[test]
fn a_coordinator_that_waits_for_its_journal_evicts_no_worker() {
    let mut file = testing::run_file(vec![testing::stage("a", 200, 8, Some(10), None)]);
    file.workers.min = 2;
    let mut cluster = Cluster::from_run_file(file);
    cluster.start_member();
    cluster.start_member();
    cluster.run_until(|cluster| cluster.state().history.committed.step == 13);
    cluster.coordinator.is_waiting_for_journal = true;
    cluster.run_for(Time::from_secs(100));
    cluster.resume_coordinator();
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Lost), cluster.generation_starts().len()), (0, 1));
}

#[test]
fn no_step_is_lost_when_the_coordinator_is_suspended() {
    let mut file = testing::run_file(vec![testing::stage("a", 200, 8, Some(10), None)]);
    file.workers.min = 2;
    let mut cluster = Cluster::from_run_file(file);
    cluster.start_member();
    cluster.start_member();
    cluster.run_until(|cluster| cluster.state().history.committed.step == 13);
    cluster.coordinator.suspended_since = Some(cluster.queue.now());
    cluster.run_for(Time::from_secs(30));
    cluster.resume_coordinator();
    cluster.run_to_end();
    assert_eq!(cluster.count_events(EventKind::RolledBack), 0);
    assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(0, 200)));
}

/// When the coordinator restarts, the worker that holds the training state retries only every few
/// seconds, so a new worker often joins before it.
#[test]
fn a_new_worker_waits_for_the_holder_of_the_state() {
    let mut joined_first = 0;
    for seed in 0..20 {
        let file = testing::run_file(vec![testing::stage("a", 200, 8, Some(10), None)]);
        let mut cluster = Cluster::new(seed, Trace::Off, |_| Scenario::without_faults(file));
        let holder = cluster.start_member();
        cluster.run_until(|cluster| cluster.state().history.committed.step == 13);
        cluster.kill_coordinator(Time::from_secs(30));
        cluster.run_for(Time::from_secs(29));
        let new = cluster.start_worker("new".to_owned(), None);
        cluster.run_until(|cluster| cluster.is_member(new) || cluster.is_member(holder));
        joined_first += u32::from(cluster.is_member(new));
        cluster.run_to_end();
        assert_eq!(cluster.count_events(EventKind::RolledBack), 0, "seed {seed}");
        assert_eq!(cluster.committed_positions(), cluster.steps_to(position_at(0, 200)));
    }
    assert!(joined_first > 0, "the holder of the state always joined first");
}

#[test]
fn a_coordinator_of_a_finished_run_deletes_unknown_checkpoints() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 5, 8, None, None)]));
    cluster.start_member();
    cluster.run_until(|cluster| cluster.count_events(EventKind::Finished) == 1);
    // An evicted worker has written this checkpoint.
    cluster.disk.checkpoints.insert("0-a-00000003".into(), UpdateHistory::new());
    cluster.kill_coordinator(Time::from_secs(1));
    cluster.run_to_end();
    assert_eq!((cluster.generation_starts().len(), cluster.checkpoint_names()), (1, vec!["0-a-00000005"]));
}

/// The journal has no step of the second stage that would show a restarted coordinator that its
/// first state was reached.
#[test]
fn an_evaluation_of_a_stages_first_state_is_repeated_when_that_state_is_lost() {
    let stage = Stage { evaluate_first: true, metric: Some("cider".into()), ..testing::stage("b", 6, 5, None, None) };
    let file = testing::run_file(vec![testing::stage("a", 4, 8, Some(4), None), stage]);
    let saving = Time::from_secs(5);
    let mut cluster = Cluster::from_scenario(Scenario { max_saving_time: saving, ..Scenario::without_faults(file) });
    let first = cluster.start_member();
    let evaluations = |cluster: &Cluster| {
        cluster.count_records(
            |record| matches!(record, Record::Evaluated { position, .. } if *position == position_at(1, 0)),
        )
    };
    cluster.run_until(|cluster| evaluations(cluster) == 1);
    cluster.end_worker(first);
    cluster.kill_coordinator(Time::from_secs(1));
    cluster.run_until(|cluster| cluster.coordinator.engine.is_some());
    cluster.start_member();
    cluster.run_until(|cluster| evaluations(cluster) == 2);
    cluster.run_to_end();
}
