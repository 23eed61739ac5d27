//! Evaluations: captions, scores, and failures during both.
//!
//! Stages are written as `testing::stage(NAME, STEPS, BATCH, CHECKPOINT_EVERY, EVALUATE_EVERY)`.

use config::Stage;
use dico_engine::{Action, Event, EventKind, Time, WorkerId, image_ranges::ImageRange, record::StateSource};
use proto::{v1, v1::worker_message::Message};

use super::position_at;
use crate::simulation::{ProcessId, cluster::Cluster, scenario::Scenario, worker::Activity};
use config::testing;

/// A cluster in which it takes a minute to compute the scores of an evaluation.
fn with_slow_scoring(stage: Stage) -> Cluster {
    Cluster::from_scenario(Scenario {
        scoring_time: Time::from_secs(60),
        ..Scenario::without_faults(testing::run_file(vec![stage]))
    })
}

/// Whether a worker captions a range of images.
fn is_captioning(cluster: &Cluster, worker: ProcessId) -> bool {
    matches!(cluster.workers[&worker].activity, Activity::Captioning(_))
}

#[test]
fn an_evaluation_does_not_depend_on_the_number_of_workers() {
    let evaluate_with = |workers: u32| {
        let mut file = testing::run_file(vec![testing::stage("a", 4, 8, None, Some(2))]);
        file.workers.min = workers;
        let mut cluster = Cluster::from_run_file(file);
        (0..workers).for_each(|_| _ = cluster.start_member());
        cluster.run_to_end();
        cluster.evaluations().into_iter().map(|(position, items)| (position.step, items.len())).collect::<Vec<_>>()
    };
    assert_eq!(evaluate_with(1), [(2, 120), (4, 120)]);
    assert_eq!(evaluate_with(2), evaluate_with(1));
    assert_eq!(evaluate_with(3), evaluate_with(1));
}

#[test]
fn only_the_missing_range_is_captioned_after_a_member_dies() {
    let mut file = testing::run_file(vec![testing::stage("a", 1, 8, None, None)]);
    file.workers.min = 2;
    let mut cluster = Cluster::from_run_file(file);
    let (first, second) = (cluster.start_member(), cluster.start_member());
    cluster.run_until(|cluster| is_captioning(cluster, first) && is_captioning(cluster, second));
    cluster.workers.get_mut(&second).unwrap().is_training_blocked = true;
    cluster.run_for(Time::from_secs(2));
    cluster.end_worker(second);
    let third = cluster.start_member();
    cluster.run_to_end();
    let captioned = [(first, 0, 50), (first, 50, 100), (first, 100, 120)];
    let range = |(id, begin, end)| (id, ImageRange { begin, end });
    assert_eq!(cluster.captioned_ranges, captioned.map(range), "{third:?} needs no range");
    assert_eq!(cluster.evaluations().len(), 1);
}

#[test]
fn a_generation_that_ends_during_scoring_does_not_lose_the_evaluation() {
    let mut cluster = with_slow_scoring(testing::stage("a", 1, 8, None, None));
    let first = cluster.start_member();
    cluster.run_until(Cluster::is_scoring);
    cluster.end_worker(first);
    cluster.start_member();
    cluster.run_to_end();
    // The next generation starts from the checkpoint of the scored state.
    assert_eq!(cluster.generation_starts().last().unwrap().0, position_at(0, 1));
    assert_eq!((cluster.evaluations().len(), cluster.captioned_ranges.len()), (1, 3));
}

#[test]
fn captions_of_a_lost_state_are_dropped() {
    let mut cluster = with_slow_scoring(testing::stage("a", 4, 8, Some(2), Some(3)));
    let first = cluster.start_member();
    cluster.run_until(Cluster::is_scoring);
    cluster.end_worker(first);
    cluster.start_member();
    cluster.run_until(|cluster| cluster.generation_starts().len() == 2);
    assert_eq!(cluster.generation_starts()[1].0, position_at(0, 2));
    cluster.run_to_end();
    assert_eq!(cluster.evaluations().iter().map(|(position, _)| position.step).collect::<Vec<_>>(), [3, 4]);
    // The lost state, and the states at 3 and 4, are captioned in three ranges each.
    assert_eq!(cluster.captioned_ranges.len(), 3 + 3 + 3);
}

/// A cluster that computes the scores of the evaluation of its last step.
fn cluster_while_scoring() -> Cluster {
    let mut cluster = with_slow_scoring(testing::stage("a", 1, 8, None, None));
    cluster.start_member();
    cluster.run_until(Cluster::is_scoring);
    cluster
}

#[test]
fn a_worker_that_joins_during_scoring_does_not_repeat_the_evaluation() {
    let mut cluster = cluster_while_scoring();
    cluster.start_member();
    cluster.run_until(|cluster| cluster.state().generations.last_number == 2);
    assert!(cluster.evaluations().is_empty());
    assert_eq!(cluster.generation_starts().last(), Some(&(position_at(0, 1), StateSource::Member(WorkerId(0)))));
    cluster.run_to_end();
    assert_eq!((cluster.evaluations().len(), cluster.captioned_ranges.len()), (1, 3));
}

#[test]
fn a_stopped_coordinator_does_not_wait_for_scores() {
    let mut cluster = cluster_while_scoring();
    cluster.handle_event(Event::Shutdown);
    cluster.run_until(|cluster| cluster.count_events(EventKind::Stopped) == 1);
    assert_eq!(cluster.evaluations(), []);
}

#[test]
fn captions_that_were_not_requested_violate_the_protocol() {
    let violation_reason = |range: Option<(u64, u64)>, times: usize| {
        let mut cluster = Cluster::from_run_file(testing::run_file(vec![testing::stage("a", 1, 8, None, None)]));
        let first = cluster.start_member();
        cluster.run_until(|cluster| is_captioning(cluster, first));
        let worker = &cluster.workers[&first];
        let (session, Activity::Captioning(v1::Evaluate { evaluation, .. })) =
            (worker.session().unwrap(), &worker.activity)
        else {
            unreachable!("the worker captions a range")
        };
        let range = range.map(|(begin, end)| v1::ImageRange { begin, end });
        let items = v1::EvaluationItems { generation: 1, evaluation: *evaluation, range, items: vec![], more: false };
        let message = || Event::Message { session, message: Message::EvaluationItems(items.clone()) };
        let engine = cluster.coordinator.engine.as_mut().unwrap();
        let actions = (0..times).flat_map(|_| engine.on_event(Time::from_secs(1), message())).collect::<Vec<_>>();
        actions.into_iter().find_map(|action| match action {
            Action::Close { refusal: Some(refusal), .. } => Some(refusal.reason),
            _ => None,
        })
    };
    assert_eq!(violation_reason(Some((0, 50)), 1), None);
    for (range, times) in [(None, 1), (Some((0, 49)), 1), (Some((50, u64::MAX)), 1), (Some((0, 50)), 2)] {
        assert!(violation_reason(range, times).unwrap().contains("worker 0 violated the protocol"), "{range:?}");
    }
}
