//! Locations of checkpoints: buckets, and folders that cannot be used.

use s3_test_server::S3TestServer;
use test_support::{Coordinator, Workspace, error_line, run, run_to_completion, wait_for};

#[test]
fn a_run_that_resumes_from_a_checkpoint_in_a_bucket_equals_an_uninterrupted_run() {
    let bucket = S3TestServer::start();
    let mut workspace = Workspace::new();
    workspace.environment = bucket.environment();
    let uninterrupted =
        run_to_completion(&workspace, &workspace.run_file("uninterrupted", 2, "control: { window: 1 }\n"), 2);

    let settings = "control: { window: 1 }\ncheckpoints: { url: \"s3://data/runs/a\" }\n";
    let run_file = workspace.run_file("stopped", 2, settings);
    let coordinator = Coordinator::start(&workspace, &run_file);
    let workers: Vec<_> = (0..2).map(|worker_id| coordinator.start_worker(&workspace, worker_id)).collect();
    let seal = "data/runs/a/0-evaluator-00000004/checkpoint.json";
    wait_for("a checkpoint", || bucket.objects().contains_key(seal).then_some(()));
    coordinator.process.terminate();
    for worker in workers {
        let (succeeded, printed) = worker.finish();
        assert!(succeeded && printed.starts_with("left rank="), "the run finished too early: {printed}");
    }
    assert!(coordinator.process.succeeds());
    assert_eq!(run_to_completion(&workspace, &run_file, 2), uninterrupted);

    let is_last_seal =
        |name: &String| name.starts_with("data/runs/a/2-dico-00000004") && name.ends_with("/checkpoint.json");
    assert!(bucket.objects().keys().any(is_last_seal));
    assert!(!workspace.path("stopped/checkpoints").exists());
}

#[test]
fn an_unusable_location_is_an_error_of_validate_and_serve() {
    let workspace = Workspace::new();
    std::fs::write(workspace.path("file"), "").unwrap();
    let url = format!("file://{}", workspace.path("file/below").display());
    let run_file = workspace.run_file("run", 1, &format!("checkpoints: {{ url: \"{url}\" }}\n"));
    let config = run_file.to_string_lossy();
    let listen = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    for arguments in [&["validate", "--config", &config][..], &[&["serve", "--config", &config][..], &listen].concat()]
    {
        let error = error_line(&run("coordinator", arguments));
        assert!(error.contains(&format!("checkpoints: {url}: ")), "{error}");
    }
}
