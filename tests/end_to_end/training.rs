//! Determinism: the parameters do not depend on the number of workers or on interruptions.

use test_support::{Coordinator, Workspace, run_to_completion};

#[test]
fn runs_with_the_same_seed_and_world_size_are_equal_to_the_bit() {
    let workspace = Workspace::new();
    let first = run_to_completion(&workspace, &workspace.run_file("first", 2, ""), 2);
    let second = run_to_completion(&workspace, &workspace.run_file("second", 2, ""), 2);
    assert_eq!(first[0], first[1], "the parameters of the workers differ");
    assert_eq!(first, second, "the parameters of the runs differ");
}

#[test]
fn two_workers_equal_one_with_the_same_batch() {
    let workspace = Workspace::new();
    let one = run_to_completion(&workspace, &workspace.run_file("one", 1, ""), 1);
    let two = run_to_completion(&workspace, &workspace.run_file("two", 2, ""), 2);
    // Two workers sum in another order, so the bits differ. If they were equal, this would compare
    // a run with itself.
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
fn bf16_runs_are_equal_to_the_bit_and_close_to_f32_runs() {
    let workspace = Workspace::new();
    let settings = "compute_dtype: bf16\ngradient_dtype: bf16\n";
    let first = run_to_completion(&workspace, &workspace.run_file("bf16", 2, settings), 2);
    let second = run_to_completion(&workspace, &workspace.run_file("second", 2, settings), 2);
    assert_eq!(first[0], first[1], "the parameters of the workers differ");
    assert_eq!(first, second, "the parameters of the runs differ");
    let f32_run = run_to_completion(&workspace, &workspace.run_file("f32", 2, ""), 2);
    assert_ne!(first, f32_run);
    // Teacher forcing makes no choices, so the runs stay close: to 1 %, and to 0.01 for vectors
    // that start at zero.
    assert_close(&workspace, "1-xe-00000006", |_| 0.01);
    // DiCO chooses candidates, and in bf16 it may choose others. Then each of the 4 updates of a
    // value may have the opposite sign. An update by Adam is as large as the learning rate, 1e-3.
    assert_close(&workspace, "2-dico-00000004", |values| 4.0 * 2.0 * 1e-3 * (values as f64).sqrt());
}

/// Compares a checkpoint of the runs `bf16` and `f32`. Each vector of parameters may differ by 1 %
/// of its length plus `tolerance`, a function of the number of values.
fn assert_close(workspace: &Workspace, checkpoint: &str, tolerance: impl Fn(usize) -> f64) {
    let [bf16, f32] = ["bf16", "f32"]
        .map(|run| test_support::read_parameters(&workspace.path(run).join("checkpoints").join(checkpoint)));
    assert!(!f32.is_empty());
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    for (name, values) in &f32 {
        let pairs = || values.iter().zip(&bf16[name]).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let (distance, length) = (length(&mut pairs().map(|(a, b)| a - b)), length(&mut pairs().map(|(a, _)| a)));
        assert!(distance < 0.01 * length + tolerance(values.len()), "{checkpoint}: {name}: {distance} of {length}");
    }
}

#[test]
fn a_run_that_was_stopped_and_resumed_equals_an_uninterrupted_run() {
    let workspace = Workspace::new();
    let settings = "control: { window: 1 }\n";
    let uninterrupted = run_to_completion(&workspace, &workspace.run_file("uninterrupted", 2, settings), 2);
    let run_file = workspace.run_file("stopped", 2, settings);
    let coordinator = Coordinator::start(&workspace, &run_file);
    let workers: Vec<_> = (0..2).map(|worker_id| coordinator.start_worker(&workspace, worker_id)).collect();
    wait_for_a_checkpoint(&workspace);
    coordinator.process.terminate();
    for worker in workers {
        // The worker leaves, and does not print that it finished.
        let (succeeded, printed) = worker.finish();
        assert!(succeeded && printed.starts_with("left rank=") && !printed.contains("finished"), "{printed}");
    }
    assert!(coordinator.process.succeeds());
    let resumed = run_to_completion(&workspace, &run_file, 2);
    assert_eq!(uninterrupted, resumed);
}

/// Waits until the first checkpoint of the stopped run is complete.
fn wait_for_a_checkpoint(workspace: &Workspace) {
    let path = workspace.path("stopped").join("checkpoints/0-evaluator-00000004/checkpoint.json");
    let started_at = std::time::Instant::now();
    while !path.exists() {
        assert!(started_at.elapsed().as_secs() < 120, "no checkpoint at {}", path.display());
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}
