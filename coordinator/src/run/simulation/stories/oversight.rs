//! Evaluations, model selection, and the guard's pauses and rollbacks.

use config::{GuardAction, Rule, Stage};
use proto::{v1, v1::worker_message::Message};

use super::at;
use crate::run::{
    Action, Command, Event, Outcome, RefusalKind, RequestId, Time,
    captions::{Images, Item},
    plan::Place,
    progress::PendingBoundary,
    record::{EventKind, Record, Source},
    simulation::{WorkerId, network::Direction, scenario::Scenario, score, worker::Activity, world::SimWorld},
    testing,
};

/// A rule that every step breaks: scores are below 7.
fn broken(action: GuardAction) -> Rule {
    Rule { metric: "kl".into(), above: None, below: Some(7.0), for_: 1, action }
}

fn evaluations(world: &SimWorld) -> Vec<(Place, Vec<Item>)> {
    let evaluated = |record: &Record| match record {
        Record::Evaluated { place, items, .. } => Some((*place, items.clone())),
        _ => None,
    };
    world.coordinator.records.iter().filter_map(evaluated).collect()
}

/// A world in which scoring takes a minute.
fn with_slow_scores(stage: Stage) -> SimWorld {
    SimWorld::with(Scenario { scoring: Time::from_secs(60), ..Scenario::quiet(testing::run_file(vec![stage])) })
}

fn is_scored(world: &SimWorld) -> bool {
    let awaiting = world.run().generation.as_ref().and_then(|generation| generation.awaiting.as_ref());
    matches!(awaiting, Some(PendingBoundary::Scores))
}

fn is_captioning(world: &SimWorld, worker: WorkerId) -> bool {
    matches!(world.workers[&worker].doing, Activity::Captioning(_))
}

#[test]
fn an_evaluation_does_not_depend_on_how_many_do_it() {
    let by = |workers: u32| {
        let mut file = testing::run_file(vec![testing::stage("a", 4, 8, None, Some(2))]);
        file.workers.min = workers;
        let mut world = SimWorld::of(file);
        (0..workers).for_each(|_| _ = world.join());
        world.finish();
        evaluations(&world).into_iter().map(|(place, items)| (place.step, items.len())).collect::<Vec<_>>()
    };
    assert_eq!(by(1), [(2, 120), (4, 120)]);
    assert_eq!(by(2), by(1));
    assert_eq!(by(3), by(1));
}

#[test]
fn when_a_member_dies_only_what_is_missing_is_captioned_again() {
    let mut file = testing::run_file(vec![testing::stage("a", 1, 8, None, None)]);
    file.workers.min = 2;
    let mut world = SimWorld::of(file);
    let (first, second) = (world.join(), world.join());
    world.until(|world| is_captioning(world, first) && is_captioning(world, second));
    world.workers.get_mut(&second).unwrap().stuck = true;
    world.pass(Time::from_secs(2));
    world.end_worker(second, false);
    let third = world.join();
    world.finish();
    let captioned = [(first, 0, 50), (first, 50, 100), (first, 100, 120)];
    let of = |(id, begin, end)| (id, Images { begin, end });
    assert_eq!(world.captioned, captioned.map(of), "not {third:?}: one range is missing, and falls to one");
    assert_eq!(evaluations(&world).len(), 1);
}

#[test]
fn scores_under_way_are_not_lost_with_a_generation() {
    let mut world = with_slow_scores(testing::stage("a", 1, 8, None, None));
    let first = world.join();
    world.until(is_scored);
    world.end_worker(first, false);
    world.join();
    world.finish();
    // It is the checkpoint of the state that is being scored.
    assert_eq!(world.origins().last().unwrap().0, at(0, 1));
    assert_eq!((evaluations(&world).len(), world.captioned.len()), (1, 3));
}

#[test]
fn captions_of_a_state_that_is_lost_are_dropped() {
    let mut world = with_slow_scores(testing::stage("a", 4, 8, Some(2), Some(3)));
    let first = world.join();
    world.until(is_scored);
    world.end_worker(first, false);
    world.join();
    world.until(|world| world.origins().len() == 2);
    assert_eq!(world.origins()[1].0, at(0, 2));
    world.finish();
    assert_eq!(evaluations(&world).iter().map(|(place, _)| place.step).collect::<Vec<_>>(), [3, 4]);
    // Both captioned ranges of the lost state are useless.
    assert_eq!(world.captioned.len(), 3 + 3 + 3);
}

/// A run of a stage whose best state is the first one evaluated.
fn with_its_best_first(patience: Option<u32>) -> SimWorld {
    let stage = Stage { metric: Some("cider".into()), patience, ..testing::stage("a", 20, 8, None, Some(5)) };
    let mut file = testing::run_file(vec![stage, testing::stage("b", 3, 8, None, None)]);
    file.checkpoints.keep = 1;
    let with = |salt| Scenario { salt, ..Scenario::quiet(file.clone()) };
    let is_apt = |scenario: &Scenario| {
        let stage = Stage { patience: None, ..scenario.file.stages[0].clone() };
        scenario.best_end(&stage, 0) == 5
    };
    SimWorld::with((0..).map(with).find(is_apt).unwrap())
}

#[test]
fn a_stage_goes_back_to_its_best_and_the_next_goes_on_from_there() {
    let mut world = with_its_best_first(None);
    world.join();
    world.finish();
    assert_eq!(world.origins()[1..], [(at(0, 5), Source::Checkpoint("0-a-00000005".into()))]);
    assert_eq!(world.committed(), world.way_to(at(1, 3)));
    assert_eq!(world.committed().len(), 5 + 3);
    // The best checkpoint is kept although `keep` is 1; the last of the stage is kept for the user.
    assert_eq!(world.checkpoints(), ["0-a-00000005", "0-a-00000020", "1-b-00000003"]);
    assert_eq!(world.run().passed_over.iter().map(|saved| saved.place).collect::<Vec<_>>(), [at(0, 20)]);
    assert_eq!(world.run().samples_committed(), 8 * 8);
    assert_eq!(world.happened(EventKind::RolledBack), 0, "nothing was lost");
}

#[test]
fn patience_ends_a_stage_early() {
    let mut world = with_its_best_first(Some(2));
    world.join();
    world.finish();
    let evaluated: Vec<_> = evaluations(&world).iter().map(|(place, _)| *place).collect();
    assert_eq!(evaluated, [at(0, 5), at(0, 10), at(0, 15), at(1, 3)]);
    assert_eq!(world.invariants.ends, [(0, 5)].into());
}

#[test]
fn the_status_of_a_stage_that_was_ended_early_has_as_many_steps_as_it_has() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = SimWorld::of(testing::run_file(vec![stage]));
    assert_eq!(world.status().steps, 50);
    world.join();
    world.finish();
    let status = world.status();
    assert_eq!((status.step, status.steps), (0, 0));
}

/// A world in which all captions of the last step are written and being scored, which takes long.
fn being_scored() -> SimWorld {
    let mut world = with_slow_scores(testing::stage("a", 1, 8, None, None));
    world.join();
    world.until(is_scored);
    world
}

#[test]
fn whoever_joins_while_scores_are_awaited_is_taken_in_and_they_stay_welcome() {
    let mut world = being_scored();
    world.join();
    world.until(|world| world.run().last_generation == 2);
    assert!(evaluations(&world).is_empty());
    assert_eq!(world.origins().last(), Some(&(at(0, 1), Source::Member(0))));
    world.finish();
    assert_eq!((evaluations(&world).len(), world.captioned.len()), (1, 3));
}

#[test]
fn asked_to_stop_it_does_not_wait_for_scores() {
    let mut world = being_scored();
    world.tell(Event::Shutdown);
    world.until(|world| world.happened(EventKind::Stopped) == 1);
    assert_eq!(evaluations(&world), []);
}

#[test]
fn a_decision_that_a_dying_coordinator_did_not_take_is_taken_when_it_is_back() {
    let mut world = with_its_best_first(None);
    world.join();
    world.until(|world| world.run().committed == at(0, 20) && is_scored(world));
    // Its last record is the evaluation of the last step.
    world.coordinator.doomed = Some(1);
    world.until(|world| world.coordinator.run.is_none());
    assert!(matches!(world.coordinator.records.last(), Some(Record::Evaluated { place, .. }) if *place == at(0, 20)));
    world.finish();
    assert_eq!((world.invariants.ends.clone(), world.happened(EventKind::StageEnded)), ([(0, 5)].into(), 1));
    assert_eq!(world.committed(), world.way_to(at(1, 3)));
}

#[test]
fn a_paused_run_waits_whoever_comes_and_goes() {
    let stage = Stage { guard: vec![broken(GuardAction::Pause)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = SimWorld::of(testing::run_file(vec![stage]));
    let some = Time::from_secs(20);
    let first = world.join();
    world.pass(some);
    let status = world.status();
    assert_eq!((status.state.as_str(), status.step), ("paused", 8), "what was granted is done");
    assert!(status.reason.contains("kl is") && status.reason.contains("below 7"), "{}", status.reason);
    assert!(world.run().readiness().is_err());
    assert_eq!(world.checkpoints(), ["0-a-00000008"]);

    world.join();
    world.pass(some);
    world.end_worker(first, false);
    world.pass(some);
    world.kill_coordinator(Time::from_secs(1));
    world.pass(some);
    let status = world.status();
    assert_eq!((status.state.as_str(), status.step), ("paused", 8));
    assert_eq!(world.origins().len(), 4);

    // The rule is still broken as before the restart, and has fired already.
    world.resume();
    world.finish();
    assert_eq!((world.happened(EventKind::Paused), world.happened(EventKind::Resumed)), (1, 1));
}

#[test]
fn a_paused_run_can_be_stopped_and_only_a_paused_one_resumed() {
    let stage = Stage { guard: vec![broken(GuardAction::Pause)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = SimWorld::of(testing::run_file(vec![stage]));
    let resume = Event::Control { request: RequestId(0), command: Command::Resume };
    let actions = world.coordinator.run.as_mut().unwrap().on_event(Time::ZERO, resume);
    let [Action::Refuse { refusal, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert!(refusal.reason.contains("not paused"), "{}", refusal.reason);
    world.join();
    world.until(|world| world.status().state == "paused");
    world.tell(Event::Shutdown);
    world.until(|world| world.outcome.is_some());
    assert_eq!(world.outcome, Some(Outcome::Stopped));
    assert!(world.invariants.paused, "the next coordinator finds it paused");
}

#[test]
fn a_rollback_ends_the_stage_where_no_rule_was_broken() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("b", 50, 8, Some(1), None) };
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 4, 8, None, None), stage]));
    world.join();
    world.finish();
    // The statistics of the first step are of the initial state of the stage, the final one of the
    // stage before.
    assert_eq!(world.invariants.ends, [(1, 0)].into());
    assert_eq!(world.origins().last().unwrap().0, at(0, 4));
    assert_eq!(world.committed(), world.way_to(at(0, 4)));
    assert_eq!(world.checkpoints(), ["0-a-00000004", "1-b-00000001"], "the last of each stage is kept for the user");
    let fired = world.count(|record| matches!(record, Record::Guard { .. }));
    assert_eq!(fired, 1, "a stage that has ended is not watched any more");
}

#[test]
fn a_rule_that_warns_or_pauses_takes_no_state_away() {
    for action in [GuardAction::Warn, GuardAction::Pause] {
        // Every evaluation breaks it.
        let rule = Rule { metric: "cider".into(), ..broken(action) };
        let stage =
            Stage { metric: Some("cider".into()), guard: vec![rule], ..testing::stage("a", 20, 8, None, Some(5)) };
        let with = |salt| Scenario { salt, ..Scenario::quiet(testing::run_file(vec![stage.clone()])) };
        let is_apt = |scenario: &Scenario| scenario.best_end(&stage, 0) == 20;
        let mut world = SimWorld::with((0..).map(with).find(is_apt).unwrap());
        world.join();
        if action == GuardAction::Pause {
            world.until(|world| world.status().state == "paused");
            world.resume();
        }
        world.finish();
        assert_eq!((world.invariants.ends.clone(), world.committed().len()), ([].into(), 20), "{action:?}");
        assert_eq!(world.checkpoints().last(), Some(&"0-a-00000020"));
    }
}

#[test]
fn the_last_state_of_a_stage_is_kept_for_the_user_across_restarts() {
    let mut world = with_its_best_first(None);
    world.join();
    world.until(|world| world.invariants.ends.contains_key(&0));
    world.kill_coordinator(Time::from_secs(1));
    world.finish();
    assert_eq!(world.checkpoints()[..2], ["0-a-00000005", "0-a-00000020"]);
}

/// The end of a run of one stage that ends with a rollback, for the first salt that `is_apt`.
fn rolled_back_to(stage: Stage, keep: u32, is_apt: impl Fn(u64) -> bool) -> u64 {
    let mut file = testing::run_file(vec![stage]);
    file.checkpoints.keep = keep;
    let salt = (0..).find(|salt| is_apt(*salt)).unwrap();
    let mut world = SimWorld::with(Scenario { salt, ..Scenario::quiet(file) });
    world.join();
    world.finish();
    world.invariants.ends[&0]
}

#[test]
fn what_a_rollback_would_need_is_kept_while_a_rule_is_about_to_fire() {
    let above = |metric: &str, bound, for_| Rule {
        metric: metric.into(),
        above: Some(bound),
        below: None,
        for_,
        action: GuardAction::Rollback,
    };
    // Better by the metric, worse by the rule: the first of two states beyond the bound is the best
    // so far.
    let guard = vec![above("cider", 4.5, 2)];
    let stage = Stage { metric: Some("cider".into()), guard, ..testing::stage("a", 50, 8, None, Some(10)) };
    let scores = |salt| [10, 20, 30].map(|step| score(salt, at(0, step)));
    assert_eq!(rolled_back_to(stage, 1, |salt| matches!(scores(salt), [..4.5, (4.5..), (4.5..)])), 10);

    // Steps 1 to 5 are good, and so is the state at 4; the rule then takes longer than checkpoints
    // are kept.
    let stage = Stage { guard: vec![above("kl", 2.5, 6)], ..testing::stage("a", 50, 8, Some(1), None) };
    let bad = |salt| move |step| score(salt + 1, at(0, step)) > 2.5;
    let apt = |salt| !(1..=5).any(bad(salt)) && (6..=11).all(bad(salt));
    assert_eq!(rolled_back_to(stage, 2, apt), 4);

    // Whether the state just saved is good is known only after the next step.
    let stage = Stage { guard: vec![above("kl", 2.5, 1)], ..testing::stage("a", 50, 8, Some(1), None) };
    assert_eq!(rolled_back_to(stage, 1, |salt| !(1..=5).any(bad(salt)) && bad(salt)(6)), 4);
}

#[test]
fn a_checkpoint_that_a_stages_end_overtook_is_kept_as_its_last() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("a", 4, 8, Some(1), None) };
    let mut world = SimWorld::of(testing::run_file(vec![stage, testing::stage("b", 3, 8, None, None)]));
    let first = world.join();
    world.until(|world| matches!(world.workers[&first].doing, Activity::Computing(_)));
    // The step and the checkpoint: it is written before the report that ends the stage arrives.
    world.cut(first, Direction::Up);
    world.until(|world| world.disk.checkpoints.len() == 1);
    assert!(world.invariants.ends.is_empty());
    world.mend(first, Direction::Up);
    world.until(|world| !world.invariants.ends.is_empty());
    assert_eq!((world.invariants.ends.clone(), world.disk.checkpoints.len()), ([(0, 0)].into(), 1));
    world.finish();
    assert_eq!(world.checkpoints(), ["0-a-00000001", "1-b-00000003"]);
}

#[test]
fn without_any_checkpoint_a_rollback_leaves_the_seed() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = SimWorld::of(testing::run_file(vec![stage]));
    world.join();
    world.finish();
    assert_eq!(world.origins().last(), Some(&(at(0, 0), Source::Seed)));
    assert_eq!(world.committed(), []);
}

#[test]
fn a_warning_is_recorded_and_nothing_else() {
    let stage = Stage { guard: vec![broken(GuardAction::Warn)], ..testing::stage("a", 5, 8, None, None) };
    let mut world = SimWorld::of(testing::run_file(vec![stage]));
    world.join();
    world.finish();
    assert_eq!(world.count(|record| matches!(record, Record::Guard { .. })), 1);
    assert_eq!(world.count(|record| matches!(record, Record::Guard { place, .. } if *place == at(0, 1))), 1);
}

#[test]
fn captions_that_were_not_asked_for_break_the_protocol() {
    let answer = |range: Option<(u64, u64)>, times: usize| {
        let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 1, 8, None, None)]));
        let first = world.join();
        world.until(|world| is_captioning(world, first));
        let worker = &world.workers[&first];
        let (session, Activity::Captioning(v1::Evaluate { evaluation, .. })) =
            (worker.session().unwrap(), &worker.doing)
        else {
            unreachable!("seen above")
        };
        let range = range.map(|(begin, end)| v1::ImageRange { begin, end });
        let items = v1::EvaluationItems { generation: 1, evaluation: *evaluation, range, items: vec![], more: false };
        let say = || Event::Message { session, message: Message::EvaluationItems(items.clone()) };
        let run = world.coordinator.run.as_mut().unwrap();
        let actions = (0..times).flat_map(|_| run.on_event(Time::from_secs(1), say())).collect::<Vec<_>>();
        actions.into_iter().find_map(|action| match action {
            Action::Close { refusal: Some(refusal), .. } => Some(refusal.reason),
            _ => None,
        })
    };
    assert_eq!(answer(Some((0, 50)), 1), None);
    for (range, times) in [(None, 1), (Some((0, 49)), 1), (Some((50, u64::MAX)), 1), (Some((0, 50)), 2)] {
        assert!(answer(range, times).unwrap().contains("rank 0 broke the protocol"), "{range:?}");
    }
}

#[test]
fn what_is_asked_for_comes_after_what_is_granted() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 30, 8, None, None)]));
    world.join();
    world.until(|world| world.status().step >= 5);
    let ahead = world.run().ahead();
    for command in [Command::Checkpoint, Command::Evaluate] {
        world.steer(command);
    }
    world.finish();
    assert_eq!(evaluations(&world).iter().map(|(place, _)| *place).collect::<Vec<_>>(), [ahead, at(0, 30)]);
    let saved = |record: &Record| matches!(record, Record::Saved(saved) if saved.place == ahead);
    assert_eq!((world.count(saved), world.count(|record| matches!(record, Record::Formed { .. }))), (1, 1));
}

#[test]
fn somebody_pauses_and_drains() {
    let mut world = SimWorld::of(testing::run_file(vec![testing::stage("a", 60, 8, None, None)]));
    world.join();
    world.join();
    world.until(|world| world.status().step >= 5);
    world.steer(Command::Pause);
    world.pass(Time::from_secs(10));
    let status = world.status();
    assert_eq!((status.state.as_str(), status.reason.as_str()), ("paused", "somebody asked for it"));
    assert_eq!(world.checkpoints().len(), 1, "what it is held at is saved");
    world.steer(Command::Drain(1));
    world.until(|world| world.status().members.len() == 1);
    world.steer(Command::Drain(1));
    assert_eq!(world.happened(EventKind::Leaving), 1, "nobody is asked twice, or who is not there");
    world.resume();
    world.finish();
    assert_eq!(world.happened(EventKind::Lost), 0);
    // A finished run accepts no commands.
    world.steer(Command::Pause);
    assert_eq!((world.happened(EventKind::Paused), world.happened(EventKind::Resumed)), (1, 1));
}
