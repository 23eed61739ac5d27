//! Short chaos tests; `make chaos` runs a long one.

use std::time::Duration;

use test_support::Workspace;
use test_support::chaos::{Chaos, Fault};

/// Runs three workers with random faults of these kinds. Checks that no sample is lost or repeated.
fn run_with_faults(fault_kinds: Vec<Fault>, max_faults: usize, seed: u64) {
    let (max_duration, steps) = (Duration::from_secs(150), 60 * max_faults as u64);
    let chaos = Chaos { workers: 3, fault_kinds, max_faults, max_duration, seed, steps };
    let summary = chaos.run(&Workspace::with_images(120), "chaos");
    assert!(summary.faults > max_faults / 2, "{summary:?}");
    assert_eq!((summary.samples_lost, summary.samples_repeated, summary.divergent_ranks), (0, 0, 0), "{summary:?}");
    assert_eq!(summary.redone_steps_max, 1, "more than the step in flight was repeated: {summary:?}");
}

#[test]
fn no_sample_is_lost_or_repeated_when_workers_are_killed_suspended_or_terminated() {
    run_with_faults(vec![Fault::Kill, Fault::Kill, Fault::Stop, Fault::Leave], 8, 1);
}

#[test]
fn no_sample_is_lost_or_repeated_when_the_coordinator_is_killed_or_suspended() {
    run_with_faults(vec![Fault::KillCoordinator, Fault::StopCoordinator], 6, 2);
}
