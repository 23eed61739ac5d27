//! Workers that join, leave, and are evicted.
//!
//! Stages are written as `testing::stage(NAME, STEPS, BATCH, CHECKPOINT_EVERY, EVALUATE_EVERY)`.

use config::RunFile;
use dico_engine::{
    Action, Engine, Event, EventKind, Outcome, RequestId, SessionId, Time, WorkerId,
    checkpoint::Checkpoint,
    plan::Position,
    record::{Record, StateSource},
    restored::RestoredRun,
};
use proto::{PROTOCOL_VERSION, v1, v1::directive::Directive};

use super::{position_at, session_token_of};
use crate::simulation::{
    WORKER_ADDRESS,
    cluster::{Cluster, SimEvent, Trace},
    network::Direction,
    scenario::Scenario,
    worker::{Activity, WakeReason},
};
use config::testing;

#[test]
fn a_run_without_faults_forms_one_generation() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.count_records(|record| matches!(record, Record::Step(_))), 20);
    assert_eq!(cluster.count_records(|record| matches!(record, Record::Formed { .. })), 1);
    assert_eq!(cluster.count_records(|record| matches!(record, Record::Evaluated { .. })), 1);
    assert_eq!(cluster.count_records(|record| matches!(record, Record::Saved(_))), 2);
}

#[test]
fn a_worker_that_joins_becomes_a_member_after_the_step_in_flight() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| matches!(cluster.workers[&first].activity, Activity::Computing(_)));
    assert_eq!(cluster.state().generations.current.as_ref().unwrap().granted.step, 8);
    cluster.start_member();
    cluster.run_until(|cluster| cluster.generation_starts().len() == 2);
    assert_eq!(cluster.generation_starts()[1], (position_at(0, 2), StateSource::Member(WorkerId(0))));
    cluster.run_to_end();
    assert_eq!(
        cluster.count_records(|record| matches!(record, Record::Formed { members, .. } if members.len() == 2)),
        1
    );
}

#[test]
fn a_stopped_coordinator_saves_the_state_first() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| matches!(cluster.workers[&first].activity, Activity::Computing(_)));
    cluster.handle_event(Event::Shutdown);
    cluster.run_until(|cluster| cluster.outcome.is_some());
    assert_eq!(cluster.outcome, Some(Outcome::Stopped));
    let committed = cluster.state().history.committed;
    assert!((1..8).contains(&committed.step), "the run stopped at {committed}, not after the step in flight");
    assert_eq!(cluster.disk.checkpoints[&committed.checkpoint_name("a", None)].len() as u64, committed.step);
}

#[test]
fn a_coordinator_stopped_while_a_worker_leaves_saves_the_state_first() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = cluster.start_member();
    cluster.run_until(|cluster| cluster.state().history.committed.step == 2);
    // Worker and coordinator receive a shutdown signal, as when a cluster manager stops the job.
    cluster
        .queue
        .schedule_after(Time::ZERO, SimEvent::ConnectionWakeUp { worker: first, reason: WakeReason::ShutdownSignal });
    cluster.run_until(|cluster| cluster.count_events(EventKind::Leaving) == 1);
    cluster.handle_event(Event::Shutdown);
    cluster.run_until(|cluster| cluster.outcome.is_some());
    assert_eq!(cluster.outcome, Some(Outcome::Stopped));
    let committed = cluster.state().history.committed;
    assert_eq!(cluster.disk.checkpoints[&committed.checkpoint_name("a", None)].len() as u64, committed.step);
}

#[test]
fn silent_workers_and_workers_with_other_data_are_removed() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.workers.min = 2;
    let mut engine = Engine::new(file, RestoredRun::default(), 0);
    let attach_worker = |engine: &mut Engine, session: u64, fingerprint: &str, now| {
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let session_token = session_token_of(&engine.on_event(
            now,
            Event::Join { request: RequestId(0), address: WORKER_ADDRESS, generated_join_key: "join key".into(), join },
        ));
        let data_set = Some(v1::DataSet { training_fingerprint: fingerprint.into(), ..Default::default() });
        let store_address = "host:1".into();
        let attach = v1::Attach { session_token, store_address, data_set, ..Default::default() };
        engine.on_event(now, Event::Attach { session: SessionId(session), attach })
    };
    attach_worker(&mut engine, 1, "these", Time::ZERO);
    let actions = attach_worker(&mut engine, 2, "those", Time::ZERO);
    let Action::Send { session: SessionId(2), directive } = &actions[0] else { panic!("{actions:?}") };
    let Some(Directive::Leave(leave)) = &directive.directive else { panic!("{directive:?}") };
    assert!(
        ["these", "those", "worker 0", "worker 1"].iter().all(|part| leave.reason.contains(part)),
        "{}",
        leave.reason
    );
    assert_eq!(engine.state().members.len(), 1);

    let joined_at = Time::from_secs(6);
    attach_worker(&mut engine, 3, "these", joined_at);
    assert_eq!(engine.state().status(joined_at).state(), v1::RunState::Forming);
    let actions = engine.on_event(Time::from_secs(10), Event::Tick);
    assert!(actions.contains(&Action::Close { session: SessionId(1), refusal: None }), "{actions:?}");
    let is_abandon = |action: &Action| match action {
        Action::Send { session: SessionId(3), directive } => matches!(directive.directive, Some(Directive::Abandon(_))),
        _ => false,
    };
    assert!(actions.iter().any(is_abandon), "{actions:?}");
}

#[test]
fn changed_validation_data_are_admitted_and_changed_training_data_only_if_accepted() {
    let file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    let data_set = |training: &str, validation: &str| v1::DataSet {
        training_fingerprint: training.into(),
        validation_fingerprint: validation.into(),
        models_fingerprint: "models".into(),
        ..Default::default()
    };
    let restored = || RestoredRun { last_generation: 1, data_set: Some(data_set("t", "v")), ..RestoredRun::default() };
    let mut engine = Engine::new(file, restored(), 0);
    let attach_worker = |engine: &mut Engine, session: u64, data_set: v1::DataSet| {
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let generated_join_key = format!("join key {session}");
        let session_token = session_token_of(&engine.on_event(
            Time::ZERO,
            Event::Join { request: RequestId(0), address: WORKER_ADDRESS, generated_join_key, join },
        ));
        let store_address = "host:1".into();
        let attach = v1::Attach { session_token, store_address, data_set: Some(data_set), ..Default::default() };
        let actions = engine.on_event(Time::ZERO, Event::Attach { session: SessionId(session), attach });
        let reason = actions.iter().find_map(|action| match action {
            Action::Send { directive: v1::Directive { directive: Some(Directive::Leave(leave)), .. }, .. } => {
                Some(&leave.reason)
            }
            _ => None,
        });
        let is_change = |action: &&Action| match action {
            Action::Record(record) => record.event().is_some_and(|(kind, _)| kind == EventKind::DataChanged),
            _ => false,
        };
        (reason.cloned(), actions.iter().filter(is_change).count())
    };
    let (reason, _) = attach_worker(&mut engine, 1, data_set("others", "v"));
    let reason = reason.unwrap();
    assert!(reason.contains("the training data differ") && reason.contains("--accept-changes"), "{reason}");
    // The first worker defines the validation data; the others must have the same.
    assert_eq!(attach_worker(&mut engine, 2, data_set("t", "changed")), (None, 1));
    let (reason, changes) = attach_worker(&mut engine, 3, data_set("t", "v"));
    assert!(reason.is_some_and(|reason| reason.contains("the validation data differ")) && changes == 0);
    assert_eq!(attach_worker(&mut engine, 4, data_set("t", "changed")), (None, 0));

    // If changes are accepted, both splits may change once. The models may not.
    let mut engine = Engine::new(engine.state().settings.file.clone(), restored(), 0).accepting_changed_data();
    let other_models = v1::DataSet { models_fingerprint: "others".into(), ..data_set("t", "v") };
    assert!(attach_worker(&mut engine, 1, other_models).0.is_some_and(|reason| reason.contains("the models differ")));
    assert_eq!(attach_worker(&mut engine, 2, data_set("changed", "changed")), (None, 2));
    let (reason, changes) = attach_worker(&mut engine, 3, data_set("t", "changed"));
    assert!(reason.is_some_and(|reason| reason.contains("restart all workers")) && changes == 0);
    assert_eq!(attach_worker(&mut engine, 4, data_set("changed", "changed")), (None, 0));
}

#[test]
fn changed_training_data_start_a_new_sequence_of_samples() {
    let file = testing::run_file(vec![testing::stage("a", 50, 8, Some(5), None)]);
    let position = Position { stage: 0, step: 5 };
    let name = position.checkpoint_name("a", None);
    let data_set = |training: &str, train_images| v1::DataSet {
        training_fingerprint: training.into(),
        train_images,
        train_captions: train_images,
        ..Default::default()
    };
    let restored = RestoredRun {
        last_generation: 1,
        committed: position,
        checkpoints: vec![Checkpoint { position, generation: 1, name, ..Checkpoint::default() }],
        data_set: Some(data_set("t", 9)),
        ..RestoredRun::default()
    };
    let mut engine = Engine::new(file, restored, 0).accepting_changed_data();
    let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
    let event =
        Event::Join { request: RequestId(0), address: WORKER_ADDRESS, generated_join_key: "join key".into(), join };
    let session_token = session_token_of(&engine.on_event(Time::ZERO, event));
    let attach = v1::Attach {
        session_token,
        store_address: "host:1".into(),
        data_set: Some(data_set("changed", 8)),
        ..Default::default()
    };
    let actions = engine.on_event(Time::ZERO, Event::Attach { session: SessionId(1), attach });
    let start = actions.iter().find_map(|action| match action {
        Action::Send {
            directive: v1::Directive { directive: Some(Directive::Rendezvous(rendezvous)), .. }, ..
        } => rendezvous.sequence_start,
        _ => None,
    });
    // Five steps of 8 samples reach into the fifth epoch of 9; the new sequence starts with the
    // next epoch.
    assert_eq!(start, Some(v1::SequenceStart { step: 5, epoch: 5 }));
}

/// The number of workers that were evicted for a stall.
fn count_stall_evictions(cluster: &Cluster) -> usize {
    let is_stall = |detail: &serde_json::Value| {
        detail["reason"].as_str().is_some_and(|reason| reason.contains("made no progress"))
    };
    cluster
        .count_records(|record| matches!(record, Record::Event { kind: EventKind::Lost, detail } if is_stall(detail)))
}

/// Runs two workers. The first one that enters an activity for which `is_in_activity` is true hangs
/// in it. Asserts that it is evicted.
fn check_that_a_hanging_worker_is_evicted(file: RunFile, is_in_activity: impl Fn(&Activity) -> bool) {
    let mut cluster = Cluster::from_run_file(file);
    cluster.start_member();
    cluster.start_member();
    let worker_in_activity = |cluster: &Cluster| {
        cluster.workers.iter().find(|(_, worker)| is_in_activity(&worker.activity)).map(|(id, _)| *id)
    };
    cluster.run_until(|cluster| cluster.state().members.len() == 2 && worker_in_activity(cluster).is_some());
    let hanging = worker_in_activity(&cluster).unwrap();
    cluster.workers.get_mut(&hanging).unwrap().is_training_blocked = true;
    cluster.run_until(|cluster| !cluster.workers.contains_key(&hanging));
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.count_events(EventKind::Lost), 1);
}

#[test]
fn a_worker_that_hangs_in_any_activity_is_evicted() {
    let mut file =
        testing::run_file(vec![testing::stage("a", 50, 8, Some(5), Some(5)), testing::stage("b", 5, 8, None, None)]);
    (file.workers.min, file.control.stall_timeout) = (2, 20.0);
    check_that_a_hanging_worker_is_evicted(file.clone(), |activity| {
        matches!(activity, Activity::AwaitingRendezvous(_))
    });
    check_that_a_hanging_worker_is_evicted(file.clone(), |activity| matches!(activity, Activity::ReceivingState(_)));
    check_that_a_hanging_worker_is_evicted(file.clone(), |activity| matches!(activity, Activity::Computing(_)));
    check_that_a_hanging_worker_is_evicted(file.clone(), |activity| matches!(activity, Activity::ApplyingUpdate(_)));
    check_that_a_hanging_worker_is_evicted(file.clone(), |activity| matches!(activity, Activity::Captioning(_)));
    check_that_a_hanging_worker_is_evicted(file.clone(), |activity| matches!(activity, Activity::CopyingState(_)));
    check_that_a_hanging_worker_is_evicted(file, |activity| matches!(activity, Activity::Idle));
}

/// Saves fail because the disk is full. While the run waits for a save, one of the two workers
/// hangs; then there is space on the disk again.
#[test]
fn a_worker_that_hangs_while_a_checkpoint_is_pending_is_evicted() {
    let mut file = testing::run_file(vec![testing::stage("a", 10, 8, None, None)]);
    (file.workers.min, file.control.stall_timeout) = (2, 20.0);
    let mut cluster = Cluster::from_run_file(file);
    let hanging = [cluster.start_member(), cluster.start_member()][1];
    cluster.disk.is_full = true;
    cluster.run_until(|cluster| cluster.count_events(EventKind::SaveFailed) == 1);
    cluster.run_for(Time::from_millis(500));
    cluster.workers.get_mut(&hanging).unwrap().is_training_blocked = true;
    cluster.disk.is_full = false;
    cluster.run_until(|cluster| !cluster.workers.contains_key(&hanging));
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Lost), cluster.count_events(EventKind::RolledBack)), (1, 0));
}

#[test]
fn a_lone_worker_that_hangs_is_evicted_when_another_joins() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.control.stall_timeout = 20.0;
    let mut cluster = Cluster::from_run_file(file);
    let first = cluster.start_member();
    cluster.run_until(|cluster| matches!(cluster.workers[&first].activity, Activity::Computing(_)));
    cluster.workers.get_mut(&first).unwrap().is_training_blocked = true;
    cluster.run_for(Time::from_secs(100));
    assert_eq!(cluster.count_events(EventKind::Lost), 0);
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!(cluster.count_events(EventKind::Lost), 1);
}

#[test]
fn a_worker_with_slow_captions_is_not_evicted_for_a_stall() {
    let mut file = testing::run_file(vec![testing::stage("a", 1, 8, None, None)]);
    (file.workers.min, file.control.stall_timeout) = (2, 10.0);
    let mut cluster = Cluster::from_run_file(file);
    let slow_worker = cluster.start_member();
    cluster.start_member();
    // The slow worker captions two ranges of images, the other worker one.
    cluster.run_until(|cluster| matches!(cluster.workers[&slow_worker].activity, Activity::ApplyingUpdate(_)));
    cluster.workers.get_mut(&slow_worker).unwrap().step_duration = Time::from_secs(6);
    cluster.run_to_end();
    assert_eq!(cluster.count_events(EventKind::Lost), 0);
}

#[test]
fn no_step_is_lost_when_workers_leave() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let leave = |cluster: &mut Cluster, id| {
        cluster
            .queue
            .schedule_after(Time::ZERO, SimEvent::ConnectionWakeUp { worker: id, reason: WakeReason::ShutdownSignal });
    };
    let (first, second) = (cluster.start_member(), cluster.start_member());
    cluster.run_until(|cluster| cluster.state().history.committed.step == 5);
    leave(&mut cluster, first);
    cluster.run_until(|cluster| !cluster.workers.contains_key(&first));
    cluster.run_until(|cluster| cluster.state().history.committed.step >= 10);
    // The second worker holds the only copy of the state.
    leave(&mut cluster, second);
    cluster.run_until(|cluster| cluster.workers.is_empty());
    assert_eq!(cluster.checkpoint_names().len(), 1);
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Left), cluster.count_events(EventKind::RolledBack)), (3, 0));
    assert_eq!(cluster.invariants.steps_given_up, 0);
}

#[test]
fn a_worker_that_joins_without_reaching_the_others_is_evicted() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = cluster.start_worker("host".into(), Some(1));
    cluster.run_until(|cluster| cluster.state().history.committed.step == 5);
    let second = cluster.start_worker("other host".into(), Some(0));
    cluster.partition(second, Direction::BetweenWorkers);
    cluster.run_to_end();
    assert!(!cluster.workers.contains_key(&second));
    assert_eq!((cluster.count_events(EventKind::Lost), cluster.count_events(EventKind::RolledBack)), (1, 0));
    assert_eq!(cluster.workers.get(&first).map_or(50, |worker| worker.history.len()), 50);
}

/// The reasons for which members left or were evicted.
fn removal_reasons(cluster: &Cluster) -> String {
    let reason = |record: &Record| match record {
        Record::Event { kind: EventKind::Lost | EventKind::Left, detail } => Some(detail["reason"].to_string()),
        _ => None,
    };
    cluster.coordinator.records.iter().filter_map(reason).collect()
}

/// The misconfigured worker has the lower worker id. If the coordinator ignored the loopback
/// address, it would evict the worker with the higher id.
#[test]
fn a_worker_that_advertises_a_loopback_address_to_another_machine_is_evicted() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.workers.min = 2;
    let mut cluster = Cluster::from_run_file(file);
    let loopback_worker = cluster.start_worker("127.0.0.1".into(), Some(0));
    let reachable_worker = cluster.start_worker("10.0.0.2".into(), Some(1));
    cluster.partition(loopback_worker, Direction::BetweenWorkers);
    cluster.run_until(|cluster| !cluster.workers.contains_key(&loopback_worker));
    assert!(cluster.is_member(reachable_worker));
    let reasons = removal_reasons(&cluster);
    assert!(["127.0.0.1", "10.0.0.2", "worker 1", "--host"].iter().all(|part| reasons.contains(part)), "{reasons}");
    cluster.start_member();
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Lost), cluster.count_events(EventKind::RolledBack)), (1, 0));
}

#[test]
fn the_only_copy_of_the_state_is_saved_before_its_holder_is_evicted() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let loopback_worker = cluster.start_worker("127.0.0.1".into(), Some(0));
    cluster.run_until(|cluster| cluster.state().history.committed.step == 5);
    let reachable_worker = cluster.start_worker("10.0.0.2".into(), Some(1));
    cluster.partition(loopback_worker, Direction::BetweenWorkers);
    cluster.run_until(|cluster| !cluster.workers.contains_key(&loopback_worker));
    let reasons = removal_reasons(&cluster);
    assert!(cluster.is_member(reachable_worker) && reasons.contains("--host"), "{reasons}");
    let committed = cluster.state().history.committed;
    assert!(
        committed.step >= 5 && cluster.checkpoint_names().len() == 1,
        "{committed} {:?}",
        cluster.checkpoint_names()
    );
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Lost), cluster.count_events(EventKind::RolledBack)), (0, 0));
    assert_eq!(cluster.invariants.steps_given_up, 0);
}

/// Two workers advertise the loopback address of their machine; a third joins from another machine.
/// One of the two saves the state and leaves, the other is evicted.
#[test]
fn workers_with_a_loopback_address_are_removed_when_another_machine_joins() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let loopback_workers = [0, 1].map(|worker_id| cluster.start_worker("127.0.0.1".into(), Some(worker_id)));
    cluster.run_until(|cluster| cluster.state().history.committed.step >= 5 && cluster.state().members.len() == 2);
    cluster.start_worker("10.0.0.2".into(), Some(2));
    loopback_workers.iter().for_each(|id| cluster.partition(*id, Direction::BetweenWorkers));
    cluster.run_until(|cluster| loopback_workers.iter().all(|id| !cluster.workers.contains_key(id)));
    cluster.run_to_end();
    assert_eq!((cluster.count_events(EventKind::Lost), cluster.count_events(EventKind::RolledBack)), (1, 0));
    assert_eq!(cluster.invariants.steps_given_up, 0);
}

/// A machine is lost, and its worker is restarted on another machine at once.
#[test]
fn the_replacement_of_a_lost_machine_waits_until_the_old_worker_is_removed() {
    let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 500, 8, None, None)]));
    let lost = cluster.start_worker("first".into(), Some(0));
    let remaining = cluster.start_worker("second".into(), Some(1));
    cluster.run_until(|cluster| cluster.state().history.committed.step >= 5 && cluster.state().members.len() == 2);
    cluster.lose_machine(lost);
    let replacement = cluster.start_worker("third".into(), Some(0));
    cluster.run_until(|cluster| cluster.is_member(replacement));
    assert_eq!(cluster.count_events(EventKind::Lost), 1);
    // A worker that requests the worker id of a live worker is refused at once, and the live worker
    // is not affected.
    let started_at = cluster.queue.now();
    let duplicate = cluster.start_worker("fourth".into(), Some(1));
    cluster.run_until(|cluster| !cluster.workers.contains_key(&duplicate));
    let refused_after = cluster.queue.now() - started_at;
    assert!(refused_after < cluster.scenario.heartbeat_timeout(), "{refused_after:?}");
    assert!(cluster.is_member(remaining) && cluster.is_member(replacement));
    assert_eq!(cluster.count_events(EventKind::Lost), 1);
}

/// A worker with a slow disk executes two saves directly after each other, and sends only
/// heartbeats meanwhile.
#[test]
fn a_worker_with_a_slow_disk_is_not_evicted_for_a_stall() {
    let stop_while_saving = |seed: u64| {
        let mut file = testing::run_file(vec![testing::stage("a", 50, 8, Some(2), None)]);
        (file.workers.min, file.control.stall_timeout) = (2, 20.0);
        let slow_disk = Scenario { max_saving_time: Time::from_secs(19), ..Scenario::without_faults(file) };
        let mut cluster = Cluster::new(seed, Trace::Off, |_| slow_disk);
        let first = cluster.start_member();
        cluster.start_member();
        cluster.run_until(|cluster| !cluster.is_saver_idle(first));
        let stopped_at = cluster.queue.now();
        cluster.handle_event(Event::Shutdown);
        cluster.run_until(|cluster| cluster.outcome.is_some());
        assert_eq!((cluster.outcome.clone(), count_stall_evictions(&cluster)), (Some(Outcome::Stopped), 0));
        cluster.queue.now() - stopped_at
    };
    let longest = (0..10).map(stop_while_saving).max();
    assert!(longest > Some(Time::from_secs(20)), "{longest:?}");
}
