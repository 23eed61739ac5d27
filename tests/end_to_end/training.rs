//! What a run computes does not depend on how it was run.

use test_support::{Coordinator, Workspace, run_to_completion};

#[test]
fn the_same_seed_and_world_size_give_the_same_bits() {
    let workspace = Workspace::new();
    let first = run_to_completion(&workspace, &workspace.run_file("first", 2, ""), 2);
    let second = run_to_completion(&workspace, &workspace.run_file("second", 2, ""), 2);
    assert_eq!(first[0], first[1], "ranks differ");
    assert_eq!(first, second, "runs differ");
}

#[test]
fn two_workers_do_what_one_does_at_the_same_global_batch() {
    let workspace = Workspace::new();
    let one = run_to_completion(&workspace, &workspace.run_file("one", 1, ""), 1);
    let two = run_to_completion(&workspace, &workspace.run_file("two", 2, ""), 2);
    // The sums are taken in another order, so the bits differ, or this compares one run with itself.
    assert_ne!(one[0], two[0]);
    let (one, two) = (workspace.parameters("one"), workspace.parameters("two"));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, values) in &one {
        for (a, b) in values.iter().zip(&two[name]) {
            assert!((a - b).abs() < 2e-5, "{name}: {a} and {b}");
        }
    }
}

#[test]
fn sixteen_bits_give_the_same_bits_again_and_nearly_what_thirty_two_do() {
    let workspace = Workspace::new();
    let settings = "compute_dtype: bf16\ngradient_dtype: bf16\n";
    let first = run_to_completion(&workspace, &workspace.run_file("first", 2, settings), 2);
    let second = run_to_completion(&workspace, &workspace.run_file("second", 2, settings), 2);
    assert_eq!(first[0], first[1], "ranks differ");
    assert_eq!(first, second, "runs differ");
    let exact = run_to_completion(&workspace, &workspace.run_file("exact", 2, ""), 2);
    assert_ne!(first, exact);
    // Teacher forcing makes no choices, so the two stay close: to 1 %, and to 0.01 where a vector began at zero.
    assert_near(&workspace, "1-xe-00000006", |_| 0.01);
    // DiCO chooses candidates, and in 16 bits it may choose others. Then each of its 4 updates of a value may go the other way;
    // one of Adam's is as large as the learning rate, 1e-3.
    assert_near(&workspace, "2-dico-00000004", |values| 4.0 * 2.0 * 1e-3 * (values as f64).sqrt());
}

/// Compares the checkpoints of the runs `first` and `exact`: their parameters are within 1 % of each other's length, and what is
/// `allowed` of a vector of so many values.
fn assert_near(workspace: &Workspace, checkpoint: &str, allowed: impl Fn(usize) -> f64) {
    let [short, exact] = ["first", "exact"]
        .map(|run| test_support::read_parameters(&workspace.path(run).join("checkpoints").join(checkpoint)));
    assert!(!exact.is_empty());
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    for (name, values) in &exact {
        let pairs = || values.iter().zip(&short[name]).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let (distance, length) = (length(&mut pairs().map(|(a, b)| a - b)), length(&mut pairs().map(|(a, _)| a)));
        assert!(distance < 0.01 * length + allowed(values.len()), "{checkpoint}: {name}: {distance} of {length}");
    }
}

#[test]
fn a_run_that_was_stopped_and_resumed_equals_one_that_was_not() {
    let workspace = Workspace::new();
    let dropout = "control: { window: 1 }\n";
    let whole = run_to_completion(&workspace, &workspace.run_file("whole", 2, dropout), 2);
    let run_file = workspace.run_file("stopped", 2, dropout);
    let coordinator = Coordinator::start(&workspace, &run_file);
    let workers: Vec<_> = (0..2).map(|worker_id| coordinator.start_worker(&workspace, worker_id)).collect();
    wait_for_a_checkpoint(&workspace);
    coordinator.process.terminate();
    for worker in workers {
        // It leaves in good order, and does not claim to have finished.
        let (succeeded, printed) = worker.finish();
        assert!(succeeded && printed.starts_with("left rank=") && !printed.contains("finished"), "{printed}");
    }
    assert!(coordinator.process.succeeds());
    let resumed = run_to_completion(&workspace, &run_file, 2);
    assert_eq!(whole, resumed);
}

/// Until the first of the stopped run's checkpoints is complete.
fn wait_for_a_checkpoint(workspace: &Workspace) {
    let path = workspace.path("stopped").join("checkpoints/0-evaluator-00000004/checkpoint.json");
    let started = std::time::Instant::now();
    while !path.exists() {
        assert!(started.elapsed().as_secs() < 120, "no checkpoint at {}", path.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
