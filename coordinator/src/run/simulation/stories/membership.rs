//! Workers that join, leave, and are evicted.

use proto::{PROTOCOL_VERSION, v1, v1::directive::Directive};

use config::RunFile;

use super::{admitted, at};
use crate::run::{
    Action, Event, Outcome, RequestId, Run, SessionId, Time,
    plan::Place,
    record::{Checkpoint, EventKind, Record, RestoredRun, Source},
    simulation::{
        HERE,
        network::Direction,
        scenario::Scenario,
        worker::{Activity, Wake},
        world::{SimEvent, SimWorld, Trace},
    },
    testing,
};

#[test]
fn a_quiet_run_goes_straight_to_its_end() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 20, 8, Some(10), None)]));
    world.join();
    world.finish();
    assert_eq!(world.count(|record| matches!(record, Record::Step(_))), 20);
    assert_eq!(world.count(|record| matches!(record, Record::Formed { .. })), 1);
    assert_eq!(world.count(|record| matches!(record, Record::Evaluated { .. })), 1);
    assert_eq!(world.count(|record| matches!(record, Record::Saved(_))), 2);
}

#[test]
fn a_newcomer_is_taken_in_after_the_step_in_flight() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = world.join();
    world.until(|world| matches!(world.workers[&first].doing, Activity::Computing(_)));
    assert_eq!(world.run().generation.as_ref().unwrap().granted.step, 8);
    world.join();
    world.until(|world| world.origins().len() == 2);
    assert_eq!(world.origins()[1], (at(0, 2), Source::Member(0)));
    world.finish();
    assert_eq!(world.count(|record| matches!(record, Record::Formed { members, .. } if members.len() == 2)), 1);
}

#[test]
fn asked_to_stop_it_saves_first() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = world.join();
    world.until(|world| matches!(world.workers[&first].doing, Activity::Computing(_)));
    world.tell(Event::Shutdown);
    world.until(|world| world.outcome.is_some());
    assert_eq!(world.outcome, Some(Outcome::Stopped));
    let committed = world.run().committed;
    assert!((1..8).contains(&committed.step), "after the step in flight, not after {committed}");
    assert_eq!(world.disk.checkpoints[&committed.checkpoint_name("a", None)].len() as u64, committed.step);
}

#[test]
fn asked_to_stop_while_a_worker_leaves_it_saves_first() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = world.join();
    world.until(|world| world.run().committed.step == 2);
    // Both get a shutdown signal, as when a whole job is stopped.
    world.agenda.after(Time::ZERO, SimEvent::Connection { worker: first, wake: Wake::Leave });
    world.until(|world| world.happened(EventKind::Leaving) == 1);
    world.tell(Event::Shutdown);
    world.until(|world| world.outcome.is_some());
    assert_eq!(world.outcome, Some(Outcome::Stopped));
    let committed = world.run().committed;
    assert_eq!(world.disk.checkpoints[&committed.checkpoint_name("a", None)].len() as u64, committed.step);
}

#[test]
fn who_is_not_heard_is_lost_and_who_brings_other_data_is_sent_away() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.workers.min = 2;
    let mut run = Run::new(file, RestoredRun::default(), 0);
    let enter = |run: &mut Run, session: u64, fingerprint: &str, now| {
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let session_token = admitted(
            &run.on_event(now, Event::Join { request: RequestId(0), address: HERE, token: "token".into(), join }),
        );
        let data_set = Some(v1::DataSet { training_fingerprint: fingerprint.into(), ..Default::default() });
        let store_address = "host:1".into();
        let attach = v1::Attach { session_token, store_address, data_set, ..Default::default() };
        run.on_event(now, Event::Attach { session: SessionId(session), attach })
    };
    enter(&mut run, 1, "these", Time::ZERO);
    let actions = enter(&mut run, 2, "those", Time::ZERO);
    let Action::Send { session: SessionId(2), directive } = &actions[0] else { panic!("{actions:?}") };
    let Some(Directive::Leave(leave)) = &directive.directive else { panic!("{directive:?}") };
    assert!(["these", "those", "rank 0", "rank 1"].iter().all(|part| leave.reason.contains(part)), "{}", leave.reason);
    assert_eq!(run.members.len(), 1);

    let heard = Time::from_secs(6);
    enter(&mut run, 3, "these", heard);
    assert_eq!(run.status(heard).state, "forming");
    let actions = run.on_event(Time::from_secs(10), Event::Tick);
    assert!(actions.contains(&Action::Close { session: SessionId(1), refusal: None }), "{actions:?}");
    let abandon = |action: &Action| match action {
        Action::Send { session: SessionId(3), directive } => matches!(directive.directive, Some(Directive::Abandon(_))),
        _ => false,
    };
    assert!(actions.iter().any(abandon), "{actions:?}");
}

#[test]
fn validation_data_may_change_between_two_coordinators_and_training_data_only_where_that_is_accepted() {
    let file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    let of = |training: &str, validation: &str| v1::DataSet {
        training_fingerprint: training.into(),
        validation_fingerprint: validation.into(),
        ..Default::default()
    };
    let restored = || RestoredRun { last_generation: 1, data_set: Some(of("t", "v")), ..RestoredRun::default() };
    let mut run = Run::new(file, restored(), 0);
    let enter = |run: &mut Run, session: u64, data_set: v1::DataSet| {
        let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
        let token = format!("token {session}");
        let session_token =
            admitted(&run.on_event(Time::ZERO, Event::Join { request: RequestId(0), address: HERE, token, join }));
        let store_address = "host:1".into();
        let attach = v1::Attach { session_token, store_address, data_set: Some(data_set), ..Default::default() };
        let actions = run.on_event(Time::ZERO, Event::Attach { session: SessionId(session), attach });
        let reason = actions.iter().find_map(|action| match action {
            Action::Send { directive: v1::Directive { directive: Some(Directive::Leave(leave)), .. }, .. } => {
                Some(&leave.reason)
            }
            _ => None,
        });
        let is_change =
            |action: &&Action| matches!(action, Action::Record(Record::Event { what: EventKind::DataChanged, .. }));
        (reason.cloned(), actions.iter().filter(is_change).count())
    };
    let (reason, _) = enter(&mut run, 1, of("others", "v"));
    let reason = reason.unwrap();
    assert!(reason.contains("the training data differ") && reason.contains("--accept-changes"), "{reason}");
    // The first worker defines the present validation data; the others must have the same.
    assert_eq!(enter(&mut run, 2, of("t", "mended")), (None, 1));
    let (reason, changes) = enter(&mut run, 3, of("t", "v"));
    assert!(reason.is_some_and(|reason| reason.contains("the validation data differ")) && changes == 0);
    assert_eq!(enter(&mut run, 4, of("t", "mended")), (None, 0));

    // If the changes are accepted, both splits may change, once; the models' sources may not.
    let mut run = Run::new(run.file.clone(), restored(), 0).exchanging_data();
    let others = v1::DataSet { models_fingerprint: "others".into(), ..of("t", "v") };
    assert!(enter(&mut run, 1, others).0.is_some_and(|reason| reason.contains("the models differ")));
    assert_eq!(enter(&mut run, 2, of("mended", "mended")), (None, 2));
    let (reason, changes) = enter(&mut run, 3, of("t", "mended"));
    assert!(reason.is_some_and(|reason| reason.contains("start all workers again")) && changes == 0);
    assert_eq!(enter(&mut run, 4, of("mended", "mended")), (None, 0));
}

#[test]
fn exchanged_data_begin_a_sequence_of_samples_where_the_run_goes_on() {
    let file = testing::run_file(vec![testing::stage("a", 50, 8, Some(5), None)]);
    let place = Place { stage: 0, step: 5 };
    let name = place.checkpoint_name("a", None);
    let of = |training: &str, train_images| v1::DataSet {
        training_fingerprint: training.into(),
        train_images,
        train_captions: train_images,
        ..Default::default()
    };
    let restored = RestoredRun {
        last_generation: 1,
        committed: place,
        checkpoints: vec![Checkpoint { place, generation: 1, name, ..Checkpoint::default() }],
        data_set: Some(of("t", 9)),
        ..RestoredRun::default()
    };
    let mut run = Run::new(file, restored, 0).exchanging_data();
    let join = v1::JoinRequest { protocol_version: PROTOCOL_VERSION, ..Default::default() };
    let event = Event::Join { request: RequestId(0), address: HERE, token: "token".into(), join };
    let session_token = admitted(&run.on_event(Time::ZERO, event));
    let data_set = Some(of("mended", 8));
    let attach = v1::Attach { session_token, store_address: "host:1".into(), data_set, ..Default::default() };
    let actions = run.on_event(Time::ZERO, Event::Attach { session: SessionId(1), attach });
    let start = actions.iter().find_map(|action| match action {
        Action::Send { directive: v1::Directive { directive: Some(Directive::Rendezvous(meeting)), .. }, .. } => {
            meeting.sequence_start
        }
        _ => None,
    });
    // Five steps of 8 samples have begun the fifth epoch of 9.
    assert_eq!(start, Some(v1::SequenceStart { step: 5, epoch: 5 }));
}

/// The number of workers that were evicted for a stall.
fn sent_away(world: &SimWorld) -> usize {
    let stalled =
        |detail: &serde_json::Value| detail["reason"].as_str().is_some_and(|why| why.contains("did not move"));
    world.count(|record| matches!(record, Record::Event { what: EventKind::Lost, detail } if stalled(detail)))
}

/// Two workers; the second one hangs from a certain activity on, and no operator kills it.
fn with_one_that_hangs(file: RunFile, at: impl Fn(&Activity) -> bool) {
    let mut world = SimWorld::of(file);
    world.join();
    world.join();
    let is_apt = |world: &SimWorld| world.workers.iter().find(|(_, worker)| at(&worker.doing)).map(|(id, _)| *id);
    world.until(|world| world.run().members.len() == 2 && is_apt(world).is_some());
    let hangs = is_apt(&world).unwrap();
    world.workers.get_mut(&hangs).unwrap().stuck = true;
    world.until(|world| !world.workers.contains_key(&hangs));
    world.join();
    world.finish();
    assert_eq!(world.happened(EventKind::Lost), 1);
}

#[test]
fn who_hangs_is_sent_away_whatever_it_was_at() {
    let mut file =
        testing::run_file(vec![testing::stage("a", 50, 8, Some(5), Some(5)), testing::stage("b", 5, 8, None, None)]);
    (file.workers.min, file.control.stall_timeout) = (2, 20.0);
    with_one_that_hangs(file.clone(), |doing| matches!(doing, Activity::Meeting(_)));
    with_one_that_hangs(file.clone(), |doing| matches!(doing, Activity::Adopting(_)));
    with_one_that_hangs(file.clone(), |doing| matches!(doing, Activity::Computing(_)));
    with_one_that_hangs(file.clone(), |doing| matches!(doing, Activity::Applying(_)));
    with_one_that_hangs(file.clone(), |doing| matches!(doing, Activity::Captioning(_)));
    with_one_that_hangs(file.clone(), |doing| matches!(doing, Activity::Copying(_)));
    with_one_that_hangs(file, |doing| matches!(doing, Activity::Nothing));
}

/// The last state can be saved only after one of the two has stopped responding.
#[test]
fn who_hangs_while_all_wait_for_a_checkpoint_is_sent_away() {
    let mut file = testing::run_file(vec![testing::stage("a", 10, 8, None, None)]);
    (file.workers.min, file.control.stall_timeout) = (2, 20.0);
    let mut world = SimWorld::of(file);
    let hangs = [world.join(), world.join()][1];
    world.disk.full = true;
    world.until(|world| world.happened(EventKind::SaveFailed) == 1);
    world.pass(Time::from_millis(500));
    world.workers.get_mut(&hangs).unwrap().stuck = true;
    world.disk.full = false;
    world.until(|world| !world.workers.contains_key(&hangs));
    world.join();
    world.finish();
    assert_eq!((world.happened(EventKind::Lost), world.happened(EventKind::RolledBack)), (1, 0));
}

#[test]
fn who_hangs_alone_is_sent_away_when_another_comes() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.control.stall_timeout = 20.0;
    let mut world = SimWorld::of(file);
    let first = world.join();
    world.until(|world| matches!(world.workers[&first].doing, Activity::Computing(_)));
    world.workers.get_mut(&first).unwrap().stuck = true;
    world.pass(Time::from_secs(100));
    assert_eq!(world.happened(EventKind::Lost), 0);
    world.join();
    world.finish();
    assert_eq!(world.happened(EventKind::Lost), 1);
}

#[test]
fn who_captions_for_long_does_not_stand_still() {
    let mut file = testing::run_file(vec![testing::stage("a", 1, 8, None, None)]);
    (file.workers.min, file.control.stall_timeout) = (2, 10.0);
    let mut world = SimWorld::of(file);
    let slow = world.join();
    world.join();
    // Two ranges are assigned to it, and one to the other.
    world.until(|world| matches!(world.workers[&slow].doing, Activity::Applying(_)));
    world.workers.get_mut(&slow).unwrap().pace = Time::from_secs(6);
    world.finish();
    assert_eq!(world.happened(EventKind::Lost), 0);
}

#[test]
fn nothing_is_lost_with_those_who_leave() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let leave = |world: &mut SimWorld, id| {
        world.agenda.after(Time::ZERO, SimEvent::Connection { worker: id, wake: Wake::Leave })
    };
    let (first, second) = (world.join(), world.join());
    world.until(|world| world.run().committed.step == 5);
    leave(&mut world, first);
    world.until(|world| !world.workers.contains_key(&first));
    world.until(|world| world.run().committed.step >= 10);
    // It holds the only state.
    leave(&mut world, second);
    world.until(|world| world.workers.is_empty());
    assert_eq!(world.checkpoints().len(), 1);
    world.join();
    world.finish();
    assert_eq!((world.happened(EventKind::Left), world.happened(EventKind::RolledBack)), (3, 0));
    assert_eq!(world.invariants.repeated, 0);
}

#[test]
fn whoever_comes_without_a_way_to_the_others_has_to_go_again() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let first = world.start_worker("host".into(), Some(1));
    world.until(|world| world.run().committed.step == 5);
    let second = world.start_worker("elsewhere".into(), Some(0));
    world.cut(second, Direction::Peers);
    world.finish();
    assert!(!world.workers.contains_key(&second));
    assert_eq!((world.happened(EventKind::Lost), world.happened(EventKind::RolledBack)), (1, 0));
    assert_eq!(world.workers.get(&first).map_or(50, |worker| worker.history.len()), 50);
}

/// The reasons for which members left or were evicted.
fn farewells(world: &SimWorld) -> String {
    let reason = |record: &Record| match record {
        Record::Event { what: EventKind::Lost | EventKind::Left, detail } => Some(detail["reason"].to_string()),
        _ => None,
    };
    world.coordinator.records.iter().filter_map(reason).collect()
}

/// Its id is the lower one: without a fault of its own the other one would be evicted.
#[test]
fn who_advertises_a_loopback_address_to_other_machines_has_to_go() {
    let mut file = testing::run_file(vec![testing::stage("a", 50, 8, None, None)]);
    file.workers.min = 2;
    let mut world = SimWorld::of(file);
    let local = world.start_worker("127.0.0.1".into(), Some(0));
    let other = world.start_worker("10.0.0.2".into(), Some(1));
    world.cut(local, Direction::Peers);
    world.until(|world| !world.workers.contains_key(&local));
    assert!(world.is_member(other));
    let said = farewells(&world);
    assert!(["127.0.0.1", "10.0.0.2", "rank 1", "--host"].iter().all(|part| said.contains(part)), "{said}");
    world.join();
    world.finish();
    assert_eq!((world.happened(EventKind::Lost), world.happened(EventKind::RolledBack)), (1, 0));
}

#[test]
fn the_only_state_is_saved_before_its_holder_has_to_go() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let local = world.start_worker("127.0.0.1".into(), Some(0));
    world.until(|world| world.run().committed.step == 5);
    let other = world.start_worker("10.0.0.2".into(), Some(1));
    world.cut(local, Direction::Peers);
    world.until(|world| !world.workers.contains_key(&local));
    assert!(world.is_member(other) && farewells(&world).contains("--host"), "{}", farewells(&world));
    let saved = world.run().committed;
    assert!(saved.step >= 5 && world.checkpoints().len() == 1, "{saved} {:?}", world.checkpoints());
    world.finish();
    assert_eq!((world.happened(EventKind::Lost), world.happened(EventKind::RolledBack)), (0, 0));
    assert_eq!(world.invariants.repeated, 0);
}

/// Two workers advertise loopback addresses of one machine, one that of another; the state is saved
/// once.
#[test]
fn several_of_one_machine_have_to_go_for_one_of_another() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 50, 8, None, None)]));
    let local = [0, 1].map(|rank| world.start_worker("127.0.0.1".into(), Some(rank)));
    world.until(|world| world.run().committed.step >= 5 && world.run().members.len() == 2);
    world.start_worker("10.0.0.2".into(), Some(2));
    local.iter().for_each(|id| world.cut(*id, Direction::Peers));
    world.until(|world| local.iter().all(|id| !world.workers.contains_key(id)));
    world.finish();
    assert_eq!((world.happened(EventKind::Lost), world.happened(EventKind::RolledBack)), (1, 0));
    assert_eq!(world.invariants.repeated, 0);
}

/// A machine vanishes, and its worker is restarted on another one at once.
#[test]
fn who_takes_the_place_of_a_lost_machine_waits_until_it_is_free() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 500, 8, None, None)]));
    let lost = world.start_worker("first".into(), Some(0));
    let stays = world.start_worker("second".into(), Some(1));
    world.until(|world| world.run().committed.step >= 5 && world.run().members.len() == 2);
    world.end_worker(lost, true);
    let replacement = world.start_worker("third".into(), Some(0));
    world.until(|world| world.is_member(replacement));
    assert_eq!(world.happened(EventKind::Lost), 1);
    // A worker that asks for the id of a live holder is refused, long before it would give up; the
    // holder is not affected.
    let asked = world.agenda.now();
    let second = world.start_worker("fourth".into(), Some(1));
    world.until(|world| !world.workers.contains_key(&second));
    assert!(world.agenda.now() - asked < world.scenario.heartbeat_timeout(), "{:?}", world.agenda.now() - asked);
    assert!(world.is_member(stays) && world.is_member(replacement));
    assert_eq!(world.happened(EventKind::Lost), 1);
}

/// Two checkpoints in a row, without other events in between.
#[test]
fn whose_disk_is_slow_does_not_stand_still() {
    let stop_while_saving = |seed: u64| {
        let mut file = testing::run_file(vec![testing::stage("a", 50, 8, Some(2), None)]);
        (file.workers.min, file.control.stall_timeout) = (2, 20.0);
        let slow = Scenario { saving: Time::from_secs(19), ..Scenario::quiet(file) };
        let mut world = SimWorld::new(seed, Trace::Dropped, |_| slow);
        let first = world.join();
        world.join();
        world.until(|world| !world.has_saved(first));
        let begun = world.agenda.now();
        world.tell(Event::Shutdown);
        world.until(|world| world.outcome.is_some());
        assert_eq!((world.outcome.clone(), sent_away(&world)), (Some(Outcome::Stopped), 0));
        world.agenda.now() - begun
    };
    let longest = (0..10).map(stop_while_saving).max();
    assert!(longest > Some(Time::from_secs(20)), "{longest:?}");
}
