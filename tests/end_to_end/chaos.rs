//! A short storm; `make chaos` is the long one.

use std::time::Duration;

use test_support::Workspace;
use test_support::chaos::{Chaos, Fault};

fn storm(kinds: Vec<Fault>, faults: usize, seed: u64) {
    let (limit, steps) = (Duration::from_secs(150), 60 * faults as u64);
    let chaos = Chaos { workers: 3, kinds, most: faults, limit, seed, steps };
    let summary = chaos.run(&Workspace::with_images(120), "chaos");
    assert!(summary.faults > faults / 2, "{summary:?}");
    assert_eq!((summary.samples_lost, summary.samples_repeated, summary.divergent_ranks), (0, 0, 0), "{summary:?}");
    assert_eq!(summary.redone_steps_max, 1, "only the step in flight: {summary:?}");
}

#[test]
fn workers_that_are_killed_or_stopped_or_asked_to_leave_cost_no_sample() {
    storm(vec![Fault::Kill, Fault::Kill, Fault::Stop, Fault::Leave], 8, 1);
}

#[test]
fn a_coordinator_that_is_killed_or_stopped_costs_no_sample() {
    storm(vec![Fault::KillCoordinator, Fault::StopCoordinator], 6, 2);
}
