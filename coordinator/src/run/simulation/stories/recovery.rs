//! Failures of processes and storage, and recovery from them.

use config::Stage;
use proto::v1;

use super::at;
use crate::run::{
    Outcome, Time,
    record::{EventKind, Record, Source},
    simulation::{
        History, WorkerId,
        network::Direction,
        scenario::Scenario,
        worker::Activity,
        world::{SimWorld, Trace},
    },
    testing,
};

#[test]
fn when_all_state_dies_the_last_checkpoint_is_taken() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
    let first = world.join();
    world.until(|world| world.run().committed.step == 13);
    world.end_worker(first, false);
    world.join();
    world.finish();
    let checkpoint = Source::Checkpoint("0-a-00000010".into());
    assert_eq!(world.origins(), [(at(0, 0), Source::Seed), (at(0, 10), checkpoint)]);
    assert!(world.invariants.repeated >= 3);
}

#[test]
fn parameters_that_differ_fail_the_run() {
    let mut file = testing::run_file(vec![testing::stage("a", 2, 8, None, None)]);
    file.workers.min = 2;
    let mut world = SimWorld::of(file);
    world.join();
    let spoilt = world.join();
    world.until(|world| matches!(world.workers[&spoilt].doing, Activity::Copying(_)));
    world.workers.get_mut(&spoilt).unwrap().history[0].generation = 99;
    world.until(|world| world.outcome.is_some());
    let Some(Outcome::Failed(reason)) = world.outcome else { panic!("{:?}", world.outcome) };
    assert!(reason.contains("differ") && reason.contains("rank 1"), "{reason}");
}

#[test]
fn the_same_fatal_failure_again_and_again_fails_the_run() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 2, 8, None, None)]));
    for generation in 1..=3 {
        assert_eq!(world.outcome, None);
        let worker = world.join();
        world.until(|world| world.workers[&worker].generation == Some(generation));
        world.leave_generation(worker, generation);
        let reason = "no memory\nleft".to_owned();
        world.fail(worker, v1::Failed { generation, reason, fatal: true, ..Default::default() });
        world.pass(Time::from_secs(1));
    }
    world.until(|world| world.outcome.is_some());
    let Some(Outcome::Failed(reason)) = world.outcome else { panic!("{:?}", world.outcome) };
    assert!(reason.contains("no memory left"), "{reason}");
}

/// Two workers: the first is about to save when the coordinator evicts it or dies; the second saves
/// the same state.
fn saved_by_two(meanwhile: impl Fn(&mut SimWorld, WorkerId)) {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 9, 8, Some(3), None)]));
    let first = world.join();
    world.until(|world| matches!(world.workers[&first].doing, Activity::Copying(_)));
    world.workers.get_mut(&first).unwrap().stuck = true;
    meanwhile(&mut world, first);
    world.join();
    world.until(|world| world.count(|record| matches!(record, Record::Saved(_))) == 1);
    let saved = world.disk.checkpoints.clone();
    world.thaw(first);
    world.until(|world| !world.has_saved(first));
    world.until(|world| world.has_saved(first));
    for (name, history) in saved {
        assert_eq!(world.disk.checkpoints.get(&name), Some(&history), "{name}");
    }
    world.finish();
}

#[test]
fn a_worker_that_was_given_up_does_not_touch_what_is_on_record() {
    saved_by_two(|world, first| {
        let session = world.workers[&first].session().unwrap();
        world.reset(session, true, true);
    });
}

#[test]
fn nor_does_one_that_was_told_to_save_by_a_coordinator_that_has_died() {
    saved_by_two(|world, _| {
        world.kill_coordinator(Time::from_secs(1));
        world.until(|world| world.coordinator.run.is_some());
    });
}

/// A disconnected member trains the steps that it was granted; meanwhile another one continues the
/// run from an older state.
#[test]
fn a_state_that_went_another_way_is_not_taken_up() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 500, 8, None, None)]));
    let (first, second) = (world.join(), world.join());
    let cut_off = |world: &mut SimWorld, worker| [Direction::Up, Direction::Down].map(|way| world.cut(worker, way));
    let reach = |world: &mut SimWorld, worker| [Direction::Up, Direction::Down].map(|way| world.mend(worker, way));
    world.until(|world| world.run().committed.step >= 10 && world.run().members.len() == 2);
    cut_off(&mut world, second);
    world.until(|world| world.run().last_generation == 3);
    let behind = world.run().committed.step;
    world.until(|world| world.run().committed.step >= behind + 20);
    cut_off(&mut world, first);
    world.until(|world| world.run().members.is_empty());
    reach(&mut world, second);
    world.until(|world| world.run().last_generation == 4 && world.run().committed.step > behind);
    reach(&mut world, first);
    world.finish();
}

#[test]
fn a_checkpoint_that_is_damaged_is_replaced_by_the_one_before() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 20, 8, Some(5), None)]));
    let first = world.join();
    world.until(|world| world.run().committed.step == 13);
    world.disk.damaged.insert("0-a-00000010".into());
    world.end_worker(first, false);
    world.join();
    world.finish();
    let from = |step: u64| (at(0, step), Source::Checkpoint(format!("0-a-{step:08}")));
    assert_eq!(world.origins()[1..], [from(10), from(5)]);
    assert_eq!(world.happened(EventKind::Damaged), 1);
    assert_eq!(world.committed(), world.way_to(at(0, 20)));
}

#[test]
fn a_run_that_cannot_save_holds_until_it_can() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 20, 8, Some(5), None)]));
    world.join();
    world.disk.full = true;
    world.pass(Time::from_secs(100));
    // Training continued while the first attempt was in progress.
    assert!((5..=10).contains(&world.run().committed.step), "{}", world.run().committed);
    assert_eq!((world.happened(EventKind::SaveFailed), world.happened(EventKind::SavedAgain)), (1, 0));
    world.disk.full = false;
    world.finish();
    assert_eq!((world.happened(EventKind::SaveFailed), world.happened(EventKind::SavedAgain)), (1, 1));
    assert_eq!(world.origins().len(), 1);
}

/// A checkpoint is written when the coordinator that ordered it has died; the next one has not
/// ordered it.
#[test]
fn what_was_saved_for_a_coordinator_that_has_died_means_nothing_to_the_next() {
    let mut file = testing::run_file(vec![testing::stage("a", 20, 8, Some(5), Some(2))]);
    file.workers.min = 2;
    let mut world = SimWorld::with(Scenario { saving: Time::from_secs(60), ..Scenario::quiet(file) });
    let (first, second) = (world.join(), world.join());
    world.until(|world| !world.has_saved(first));
    world.kill_coordinator(Time::from_secs(1));
    world.end_worker(second, false);
    world.until(|world| world.has_saved(first));
    world.pass(Time::from_secs(1));
    assert!(world.is_member(first));
    world.join();
    world.finish();
    assert_eq!(world.happened(EventKind::Lost), 0);
    assert_eq!(world.committed(), world.way_to(at(0, 20)));
}

#[test]
fn a_coordinator_that_waits_for_its_disk_takes_nobody_for_lost() {
    let mut file = testing::run_file(vec![testing::stage("a", 200, 8, Some(10), None)]);
    file.workers.min = 2;
    let mut world = SimWorld::of(file);
    world.join();
    world.join();
    world.until(|world| world.run().committed.step == 13);
    world.coordinator.held_up = true;
    world.pass(Time::from_secs(100));
    world.thaw_coordinator();
    world.finish();
    assert_eq!((world.happened(EventKind::Lost), world.origins().len()), (0, 1));
}

#[test]
fn a_coordinator_that_stood_still_finds_its_workers_with_all_that_they_have_done() {
    let mut file = testing::run_file(vec![testing::stage("a", 200, 8, Some(10), None)]);
    file.workers.min = 2;
    let mut world = SimWorld::of(file);
    world.join();
    world.join();
    world.until(|world| world.run().committed.step == 13);
    world.coordinator.frozen = Some(world.agenda.now());
    world.pass(Time::from_secs(30));
    world.thaw_coordinator();
    world.finish();
    assert_eq!(world.happened(EventKind::RolledBack), 0);
    assert_eq!(world.committed(), world.way_to(at(0, 200)));
}

/// By then the holders of the state retry only every few seconds, so a new worker often joins
/// first.
#[test]
fn whoever_is_new_does_not_begin_without_those_who_hold_the_state() {
    let mut firsts = 0;
    for seed in 0..20 {
        let file = testing::run_file(vec![testing::stage("a", 200, 8, Some(10), None)]);
        let mut world = SimWorld::new(seed, Trace::Dropped, |_| Scenario::quiet(file));
        let holder = world.join();
        world.until(|world| world.run().committed.step == 13);
        world.kill_coordinator(Time::from_secs(30));
        world.pass(Time::from_secs(29));
        let new = world.start_worker("new".to_owned(), None);
        world.until(|world| world.is_member(new) || world.is_member(holder));
        firsts += u32::from(world.is_member(new));
        world.finish();
        assert_eq!(world.happened(EventKind::RolledBack), 0, "seed {seed}");
        assert_eq!(world.committed(), world.way_to(at(0, 200)));
    }
    assert!(firsts > 0, "the holder was always there first");
}

#[test]
fn a_coordinator_that_comes_back_to_a_finished_run_clears_away_what_was_left() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 5, 8, None, None)]));
    world.join();
    world.until(|world| world.happened(EventKind::Finished) == 1);
    // Written by an evicted worker.
    world.disk.checkpoints.insert("0-a-00000003".into(), History::new());
    world.kill_coordinator(Time::from_secs(1));
    world.finish();
    assert_eq!((world.origins().len(), world.checkpoints()), (1, vec!["0-a-00000005"]));
}

/// Neither state has a step in the journal that shows a restarted coordinator how far the run was.
#[test]
fn an_evaluation_is_given_up_with_the_beginning_of_the_stage_that_it_is_of() {
    let stage = Stage { evaluate_first: true, metric: Some("cider".into()), ..testing::stage("b", 6, 5, None, None) };
    let file = testing::run_file(vec![testing::stage("a", 4, 8, Some(4), None), stage]);
    let saving = Time::from_secs(5);
    let mut world = SimWorld::with(Scenario { saving, ..Scenario::quiet(file) });
    let first = world.join();
    let evaluations = |world: &SimWorld| {
        world.count(|record| matches!(record, Record::Evaluated { place, .. } if *place == at(1, 0)))
    };
    world.until(|world| evaluations(world) == 1);
    world.end_worker(first, false);
    world.kill_coordinator(Time::from_secs(1));
    world.until(|world| world.coordinator.run.is_some());
    world.join();
    world.until(|world| evaluations(world) == 2);
    world.finish();
}
