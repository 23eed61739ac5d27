//! What dies or breaks, and what becomes of the run.

use super::at;
use crate::run::{
    Outcome, Time,
    record::Source,
    simulation::{network::Way, worker::Doing, world::World},
    testing,
};

#[test]
fn when_all_state_dies_the_last_checkpoint_is_taken() {
    let mut world = World::of(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
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
    let mut world = World::of(file);
    world.join();
    let spoilt = world.join();
    world.until(|world| matches!(world.workers[&spoilt].doing, Doing::Saving(_)));
    world.workers.get_mut(&spoilt).unwrap().history[0].generation = 99;
    world.until(|world| world.outcome.is_some());
    let Some(Outcome::Failed(reason)) = world.outcome else { panic!("{:?}", world.outcome) };
    assert!(reason.contains("differ") && reason.contains("rank 1"), "{reason}");
}

#[test]
fn the_same_fatal_failure_again_and_again_fails_the_run() {
    let mut world = World::of(testing::run_file(vec![testing::stage("a", 2, 8, None, None)]));
    for generation in 1..=3 {
        assert_eq!(world.outcome, None);
        let worker = world.join();
        world.until(|world| world.workers[&worker].generation == Some(generation));
        world.leave_generation(worker, generation);
        world.fail(worker, generation, "no memory\nleft", true);
        world.pass(Time::from_secs(1));
    }
    world.until(|world| world.outcome.is_some());
    let Some(Outcome::Failed(reason)) = world.outcome else { panic!("{:?}", world.outcome) };
    assert!(reason.contains("no memory left"), "{reason}");
}

/// Two workers, of which the first is in the middle of saving when the coordinator gives it up; the second saves the same place.
#[test]
#[ignore = "a worker that was given up can write over a checkpoint that is on record: both have one name"]
fn a_worker_that_was_given_up_does_not_touch_what_is_on_record() {
    let mut world = World::of(testing::run_file(vec![testing::stage("a", 9, 8, Some(3), None)]));
    world.disk.overwritten = true;
    let first = world.join();
    world.until(|world| matches!(world.workers[&first].doing, Doing::Saving(_)));
    world.workers.get_mut(&first).unwrap().stuck = true;
    let session = world.workers[&first].session().unwrap();
    world.reset(session, true, true);
    world.join();
    world.until(|world| world.checkpoints() == ["0-a-00000003"]);
    let on_record = world.disk.checkpoints.clone();
    world.thaw(first);
    world.until(|world| world.workers[&first].orders.is_empty());
    assert_eq!(world.disk.checkpoints["0-a-00000003"], on_record["0-a-00000003"]);
}

/// A member that is cut off goes on for as far as it was told; meanwhile another takes the run on from an older state.
#[test]
#[ignore = "the state of a member that was given up is taken for the present history's, if it is ahead"]
fn a_state_that_went_another_way_is_not_taken_up() {
    let mut world = World::of(testing::run_file(vec![testing::stage("a", 500, 8, None, None)]));
    let (first, second) = (world.join(), world.join());
    let cut_off = |world: &mut World, worker| [Way::Up, Way::Down].map(|way| world.cut(worker, way));
    let reach = |world: &mut World, worker| [Way::Up, Way::Down].map(|way| world.mend(worker, way));
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
    assert_eq!(world.invariants.forks, 0);
}
