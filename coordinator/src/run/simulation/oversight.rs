//! Evaluations, best states, the guard's pauses and rollbacks: one story at a time.

use super::*;
use crate::run::RefusalKind;

fn at(stage: u32, step: u64) -> Place {
    Place { stage, step }
}

/// A rule that every step breaks: scores are below 7.
fn broken(action: GuardAction) -> Rule {
    Rule { metric: "kl".into(), above: None, below: Some(7.0), for_: 1, action }
}

/// Where generations started, and from what.
fn origins(world: &World) -> Vec<(Place, Source)> {
    let formed = |record: &Record| match record {
        Record::Formed { start, source, .. } => Some((*start, source.clone())),
        _ => None,
    };
    world.records.iter().filter_map(formed).collect()
}

fn happened(world: &World, what: Happening) -> usize {
    let same = |record: &&Record| matches!(record, Record::Event { what: other, .. } if *other == what);
    world.records.iter().filter(same).count()
}

fn evaluations(world: &World) -> Vec<(Place, Vec<Item>)> {
    let evaluated = |record: &Record| match record {
        Record::Evaluated { place, items, .. } => Some((*place, items.clone())),
        _ => None,
    };
    world.records.iter().filter_map(evaluated).collect()
}

/// Lets everybody work and be heard, but nothing be scored, until `enough`.
fn work_until(world: &mut World, enough: impl Fn(&World) -> bool) {
    for _ in 0..1_000 {
        for session in world.sessions() {
            if enough(world) {
                return;
            }
            world.work(session);
            world.deliver(session);
        }
    }
    panic!("not in a thousand rounds: {:?}", world.run.status(world.now));
}

fn is_asked_for_captions(worker: &Worker) -> bool {
    matches!(worker.inbox.front().and_then(|front| front.directive.as_ref()), Some(Directive::Evaluate(_)))
}

#[test]
fn an_evaluation_does_not_depend_on_how_many_do_it() {
    let by = |workers: u32| {
        let mut file = testing::run_file(vec![testing::stage("a", 4, 8, None, Some(2))]);
        file.workers.min = workers;
        let mut world = World::new(file);
        (0..workers).for_each(|_| world.join(None));
        world.run_dry();
        assert_eq!(world.outcome, Some(Outcome::Finished));
        evaluations(&world)
    };
    let alone = by(1);
    assert_eq!(alone.iter().map(|(place, items)| (place.step, items.len())).collect::<Vec<_>>(), [(2, 120), (4, 120)]);
    assert_eq!(by(2), alone);
    assert_eq!(by(3), alone);
}

#[test]
fn when_a_member_dies_only_what_is_missing_is_captioned_again() {
    let mut file = testing::run_file(vec![testing::stage("a", 1, 8, None, None)]);
    file.workers.min = 2;
    let mut world = World::new(file);
    world.join(None);
    world.join(None);
    world.run.file.workers.min = 1;
    work_until(&mut world, |world| world.workers.values().all(is_asked_for_captions));
    let [first, second] = world.sessions()[..] else { panic!("two workers") };
    world.work(first);
    while world.deliver(first) {}
    world.die(second);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    let range = |begin, end| Images { begin, end };
    let asked = [(first, vec![range(0, 50), range(50, 100)]), (first, vec![range(100, 120)])];
    assert_eq!(world.asked, asked);
    assert_eq!(evaluations(&world).len(), 1);
}

#[test]
fn scores_under_way_are_not_lost_with_a_generation() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 1, 8, None, None)]));
    world.join(None);
    work_until(&mut world, |world| !world.scoring.is_empty());
    let session = world.sessions()[0];
    world.die(session);
    world.join(None);
    // The checkpoint of the very state that is being scored.
    assert_eq!(origins(&world).last().unwrap().0, at(0, 1));
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    assert_eq!((evaluations(&world).len(), world.asked.len()), (1, 1));
}

#[test]
fn captions_of_a_state_that_is_lost_are_dropped() {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 4, 8, Some(2), Some(3))]));
    world.join(None);
    work_until(&mut world, |world| !world.scoring.is_empty());
    let session = world.sessions()[0];
    world.die(session);
    world.join(None);
    assert_eq!(origins(&world).last().unwrap().0, at(0, 2));
    world.score();
    assert_eq!(evaluations(&world), []);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    assert_eq!(evaluations(&world).iter().map(|(place, _)| place.step).collect::<Vec<_>>(), [3, 4]);
}

/// A run of a stage whose best state is the first that is evaluated.
fn with_its_best_first(patience: Option<u32>) -> World {
    let stage = Stage { metric: Some("cider".into()), patience, ..testing::stage("a", 20, 8, None, Some(5)) };
    let salt = (0..).find(|salt| best_end(&Stage { patience: None, ..stage.clone() }, 0, *salt) == 5).unwrap();
    let mut file = testing::run_file(vec![stage, testing::stage("b", 3, 8, None, None)]);
    file.checkpoints.keep = 1;
    World { salt, ..World::new(file) }
}

#[test]
fn a_stage_goes_back_to_its_best_and_the_next_goes_on_from_there() {
    let mut world = with_its_best_first(None);
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    assert_eq!(origins(&world)[1..], [(at(0, 5), Source::Checkpoint("0-a-00000005".into()))]);
    assert_eq!(world.finals, [world.way_to(at(1, 3))]);
    assert_eq!(world.finals[0].len(), 5 + 3);
    // The best was kept although one checkpoint was to be, and nothing is left of what was given up.
    assert_eq!(world.checkpoints.keys().collect::<Vec<_>>(), ["0-a-00000005", "1-b-00000003"]);
    assert_eq!(world.run.samples_committed(), 8 * 8);
}

#[test]
fn patience_ends_a_stage_early() {
    let mut world = with_its_best_first(Some(2));
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    let evaluated: Vec<_> = evaluations(&world).iter().map(|(place, _)| *place).collect();
    assert_eq!(evaluated, [at(0, 5), at(0, 10), at(0, 15), at(1, 3)]);
    assert_eq!(world.ends, [(0, 5)].into());
}

#[test]
fn the_status_of_a_stage_that_was_ended_early_has_as_many_steps_as_it_has() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = World::new(testing::run_file(vec![stage]));
    assert_eq!(world.run.status(world.now).steps, 50);
    world.join(None);
    world.run_dry();
    let status = world.run.status(world.now);
    assert_eq!((status.step, status.steps), (0, 0));
}

/// A world where all captions of the last step are written and being scored, which takes long.
fn being_scored() -> World {
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 1, 8, None, None)]));
    world.join(None);
    work_until(&mut world, |world| !world.scoring.is_empty());
    world
}

#[test]
fn whoever_joins_while_scores_are_awaited_is_taken_in_and_they_stay_welcome() {
    let mut world = being_scored();
    world.join(None);
    work_until(&mut world, |world| world.run.last_generation == 2);
    assert_eq!(origins(&world).last(), Some(&(at(0, 1), Source::Member(0))));
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    assert_eq!((evaluations(&world).len(), world.asked.len()), (1, 1));
}

#[test]
fn asked_to_stop_it_does_not_wait_for_scores() {
    let mut world = being_scored();
    world.event(Event::Shutdown);
    work_until(&mut world, |world| happened(world, Happening::Stopped) == 1);
    assert_eq!((evaluations(&world).len(), world.scoring.len()), (0, 1));
}

#[test]
fn a_decision_that_a_dying_coordinator_did_not_take_is_taken_when_it_is_back() {
    let mut world = with_its_best_first(None);
    world.join(None);
    world.run_dry();
    // Its last words were the scores of the last step.
    let last = |record: &Record| matches!(record, Record::Evaluated { place, .. } if *place == at(0, 20));
    let index = world.records.iter().position(last).unwrap();
    let mut again = World { records: world.records[..=index].to_vec(), ..with_its_best_first(None) };
    let saved = |step| (format!("0-a-{step:08}"), world.way_to(at(0, step)));
    again.checkpoints = [saved(5), (saved(20).0, (1..=20).map(|step| at(0, step)).collect())].into();
    again.restart_coordinator();
    again.join(Some((at(0, 20).in_generation(1), (1..=20).map(|step| at(0, step)).collect())));
    again.run_dry();
    assert_eq!(again.outcome, Some(Outcome::Finished));
    assert_eq!((again.ends.clone(), happened(&again, Happening::StageEnded)), ([(0, 5)].into(), 1));
    assert_eq!(again.finals, [again.way_to(at(1, 3))]);
}

#[test]
fn a_paused_run_waits_whoever_comes_and_goes() {
    let stage = Stage { guard: vec![broken(GuardAction::Pause)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = World::new(testing::run_file(vec![stage]));
    world.join(None);
    world.run_dry();
    let status = world.run.status(world.now);
    assert_eq!((status.state.as_str(), status.step), ("paused", 8), "what was granted is done");
    assert!(status.reason.contains("kl is") && status.reason.contains("below 7"), "{}", status.reason);
    assert!(world.run.readiness().is_err());
    assert!(world.checkpoints.contains_key("0-a-00000008"));

    world.join(None);
    world.run_dry();
    let first = world.sessions()[0];
    world.die(first);
    world.run_dry();
    world.restart_coordinator();
    world.join(None);
    world.run_dry();
    let status = world.run.status(world.now);
    assert_eq!((status.state.as_str(), status.step), ("paused", 8));
    assert_eq!(origins(&world).len(), 4);

    // The rule is as broken as it was before the restart, but a restarted guard cannot know that.
    world.resume();
    world.run_dry();
    assert_eq!((world.run.status(world.now).state.as_str(), happened(&world, Happening::Paused)), ("paused", 2));
    world.resume();
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    assert_eq!(happened(&world, Happening::Resumed), 2);
}

#[test]
fn a_paused_run_can_be_stopped_and_only_a_paused_one_resumed() {
    let stage = Stage { guard: vec![broken(GuardAction::Pause)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = World::new(testing::run_file(vec![stage]));
    let request = RequestId(0);
    let actions = world.run.on_event(world.now, Event::Resume { request });
    let [Action::Refuse { refusal, .. }] = &actions[..] else { panic!("{actions:?}") };
    assert_eq!(refusal.kind, RefusalKind::FailedPrecondition);
    assert!(refusal.reason.contains("not paused"), "{}", refusal.reason);
    world.join(None);
    world.run_dry();
    world.event(Event::Shutdown);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Stopped));
    assert!(world.paused, "the next coordinator finds it paused");
}

#[test]
fn a_rollback_ends_the_stage_where_no_rule_was_broken() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("b", 50, 8, Some(1), None) };
    let mut world = World::new(testing::run_file(vec![testing::stage("a", 4, 8, None, None), stage]));
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    // The first step's statistics are of the state that the stage began with; that is the last of the stage before.
    assert_eq!(world.ends, [(1, 0)].into());
    assert_eq!(origins(&world).last().unwrap().0, at(0, 4));
    assert_eq!(world.finals, [world.way_to(at(0, 4))]);
    assert_eq!(world.checkpoints.keys().collect::<Vec<_>>(), ["0-a-00000004"]);
    let fired = world.records.iter().filter(|record| matches!(record, Record::Guard { .. })).count();
    assert_eq!(fired, 1, "a stage that has ended is not watched any more");
}

/// Where a run of one stage that ends with a rollback ends, for the first salt that `is_apt`.
fn rolled_back_to(stage: Stage, keep: u32, is_apt: impl Fn(u64) -> bool) -> u64 {
    let mut file = testing::run_file(vec![stage]);
    file.checkpoints.keep = keep;
    let salt = (0..).find(|salt| is_apt(*salt)).unwrap();
    let mut world = World { salt, ..World::new(file) };
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    world.ends[&0]
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
    // The better by the metric, the worse by the rule: the first of two that are beyond the bound is the best so far.
    let guard = vec![above("cider", 4.5, 2)];
    let stage = Stage { metric: Some("cider".into()), guard, ..testing::stage("a", 50, 8, None, Some(10)) };
    let scores = |salt| [10, 20, 30].map(|step| score(salt, at(0, step)));
    assert_eq!(rolled_back_to(stage, 1, |salt| matches!(scores(salt), [..4.5, (4.5..), (4.5..)])), 10);

    // Steps 1 to 5 are good, so the state at 4 is; then it takes longer than checkpoints are kept.
    let stage = Stage { guard: vec![above("kl", 2.5, 6)], ..testing::stage("a", 50, 8, Some(1), None) };
    let bad = |salt| move |step| score(salt + 1, at(0, step)) > 2.5;
    let apt = |salt| !(1..=5).any(bad(salt)) && (6..=11).all(bad(salt));
    assert_eq!(rolled_back_to(stage, 2, apt), 4);

    // Whether the state that was just saved is good is not known before the next step.
    let stage = Stage { guard: vec![above("kl", 2.5, 1)], ..testing::stage("a", 50, 8, Some(1), None) };
    assert_eq!(rolled_back_to(stage, 1, |salt| !(1..=5).any(bad(salt)) && bad(salt)(6)), 4);
}

#[test]
fn a_checkpoint_that_a_stages_end_overtook_is_deleted() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("a", 4, 8, Some(1), None) };
    let mut world = World::new(testing::run_file(vec![stage, testing::stage("b", 3, 8, None, None)]));
    world.join(None);
    let session = world.sessions()[0];
    world.work(session);
    world.deliver(session);
    // The step and the checkpoint: it is written before the report that ends the stage is heard.
    world.work(session);
    world.work(session);
    assert_eq!((world.ends.clone(), world.checkpoints.len()), ([].into(), 1));
    world.run_dry();
    assert_eq!(world.ends, [(0, 0)].into());
    assert_eq!(world.outcome, Some(Outcome::Finished));
    assert_eq!(world.checkpoints.keys().collect::<Vec<_>>(), ["1-b-00000003"]);
}

#[test]
fn without_any_checkpoint_a_rollback_leaves_the_seed() {
    let stage = Stage { guard: vec![broken(GuardAction::Rollback)], ..testing::stage("a", 50, 8, None, None) };
    let mut world = World::new(testing::run_file(vec![stage]));
    world.join(None);
    world.run_dry();
    assert_eq!(
        (world.outcome.clone(), origins(&world).last()),
        (Some(Outcome::Finished), Some(&(at(0, 0), Source::Seed)))
    );
    assert_eq!(world.finals, [History::new()]);
}

#[test]
fn a_warning_is_recorded_and_nothing_else() {
    let stage = Stage { guard: vec![broken(GuardAction::Warn)], ..testing::stage("a", 5, 8, None, None) };
    let mut world = World::new(testing::run_file(vec![stage]));
    world.join(None);
    world.run_dry();
    assert_eq!(world.outcome, Some(Outcome::Finished));
    let fired: Vec<Place> = world
        .records
        .iter()
        .filter_map(|record| if let Record::Guard { place, .. } = record { Some(*place) } else { None })
        .collect();
    assert_eq!(fired, [at(0, 1)]);
}

#[test]
fn captions_that_were_not_asked_for_break_the_protocol() {
    let answer = |range: Option<(u64, u64)>, times: usize| {
        let mut world = World::new(testing::run_file(vec![testing::stage("a", 1, 8, None, None)]));
        world.join(None);
        work_until(&mut world, |world| world.workers.values().all(is_asked_for_captions));
        let session = world.sessions()[0];
        let Some(Directive::Evaluate(v1::Evaluate { evaluation, .. })) =
            world.workers[&session].inbox[0].directive.clone()
        else {
            unreachable!("seen above")
        };
        let range = range.map(|(begin, end)| v1::ImageRange { begin, end });
        let items = v1::EvaluationItems { generation: 1, evaluation, range, items: vec![] };
        let say = || Event::Message { session, message: Message::EvaluationItems(items.clone()) };
        let actions = (0..times).flat_map(|_| world.run.on_event(world.now, say())).collect::<Vec<_>>();
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
