//! Commands of an operator.
//!
//! Stages are written as `testing::stage(NAME, STEPS, BATCH, CHECKPOINT_EVERY, EVALUATE_EVERY)`.

use dico_engine::{Command, EventKind, Time, WorkerId, record::Record};
use proto::v1;

use super::position_at;
use crate::simulation::cluster::Cluster;
use config::testing;

#[test]
fn a_requested_checkpoint_and_evaluation_follow_the_granted_steps() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 30, 8, None, None)]));
    cluster.start_member();
    cluster.run_until(|cluster| cluster.status().step >= 5);
    let granted_end = cluster.end_of_granted_steps();
    for command in [Command::Checkpoint, Command::Evaluate] {
        cluster.send_command(command);
    }
    cluster.run_to_end();
    assert_eq!(
        cluster.evaluations().iter().map(|(position, _)| *position).collect::<Vec<_>>(),
        [granted_end, position_at(0, 30)]
    );
    let is_requested_save = |record: &Record| matches!(record, Record::Saved(saved) if saved.position == granted_end);
    assert_eq!(
        (
            cluster.count_records(is_requested_save),
            cluster.count_records(|record| matches!(record, Record::Formed { .. }))
        ),
        (1, 1)
    );
}

#[test]
fn an_operator_pauses_the_run_and_drains_a_worker() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 60, 8, None, None)]));
    cluster.start_member();
    cluster.start_member();
    cluster.run_until(|cluster| cluster.status().step >= 5);
    cluster.send_command(Command::Pause);
    cluster.run_for(Time::from_secs(10));
    let status = cluster.status();
    assert_eq!((status.state(), status.reason.as_str()), (v1::RunState::Paused, "an operator requested it"));
    assert_eq!(cluster.checkpoint_names().len(), 1, "the state at the pause was not saved");
    cluster.send_command(Command::Drain(WorkerId(1)));
    cluster.run_until(|cluster| cluster.status().members.len() == 1);
    cluster.send_command(Command::Drain(WorkerId(1)));
    assert_eq!(cluster.count_events(EventKind::Leaving), 1, "a worker was drained twice");
    cluster.resume();
    cluster.run_to_end();
    assert_eq!(cluster.count_events(EventKind::Lost), 0);
    // A finished run accepts no commands.
    cluster.send_command(Command::Pause);
    assert_eq!((cluster.count_events(EventKind::Paused), cluster.count_events(EventKind::Resumed)), (1, 1));
}
