//! Journals that are missing, damaged or older than the checkpoints: the coordinator refuses them,
//! and recovers the run on request. Audits of journal and checkpoints.

use std::fs;
use std::path::Path;

use test_support::{Coordinator, Workspace, error_line, run, run_to_completion, wait_for};

/// The names of the sealed checkpoints, in order.
fn checkpoint_names(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.path("run/checkpoints")).into_iter().flatten().flatten();
    let sealed = entries.filter(|entry| entry.path().join("checkpoint.json").is_file());
    let mut names: Vec<String> = sealed.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Starts or resumes a run, trains until there are this many checkpoints, and stops the run.
fn train_and_stop(workspace: &Workspace, config: &Path, checkpoint_count: usize) {
    let coordinator = Coordinator::start(workspace, config);
    let worker = coordinator.start_worker(workspace, 0);
    wait_for("checkpoints", || (checkpoint_names(workspace).len() >= checkpoint_count).then_some(()));
    coordinator.process.terminate();
    assert!(coordinator.process.succeeds() && worker.succeeds());
}

/// The error of a coordinator that refuses to serve a run.
fn serve_error(config: &Path) -> String {
    let config = config.to_str().unwrap();
    let serve = ["serve", "--config", config, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    error_line(&run("coordinator", &serve))
}

/// Runs `coordinator audit` with further options.
fn audit(config: &Path, options: &[&str]) -> std::process::Output {
    let arguments = [&["audit", "--config", config.to_str().unwrap()][..], options].concat();
    run("coordinator", &arguments)
}

/// The stdout of a program.
fn stdout_of(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Recovers a run whose journal cannot be used, and runs it to its end.
fn recover(workspace: &Workspace, config: &Path) {
    let coordinator = Coordinator::start_with(workspace, config, "http", &["--recover"]);
    assert!(coordinator.start_worker(workspace, 0).succeeds() && coordinator.process.succeeds());
}

#[test]
fn an_older_copy_of_the_journal_is_refused_and_the_run_recovers_from_the_newest_checkpoint() {
    let workspace = Workspace::new();
    let (config, state) = (workspace.run_file_with_checkpoints("run"), workspace.path("run/coordinator"));
    train_and_stop(&workspace, &config, 2);
    let first_audit = audit(&config, &[]);
    assert!(first_audit.status.success(), "{first_audit:?}");
    let head = stdout_of(&first_audit).lines().last().unwrap().strip_prefix("last record ").unwrap().to_owned();
    let journal = state.join("journal.sqlite");
    let older_copy = fs::read(&journal).unwrap();
    train_and_stop(&workspace, &config, 5);
    let second_audit = audit(&config, &["--head", &head]);
    assert!(second_audit.status.success() && stdout_of(&second_audit).contains("\nclean: "), "{second_audit:?}");
    let later_head = stdout_of(&second_audit).lines().last().unwrap().strip_prefix("last record ").unwrap().to_owned();
    fs::write(&journal, &older_copy).unwrap();

    let newest = checkpoint_names(&workspace).last().unwrap().clone();
    let line = serve_error(&config);
    assert!(line.contains("the journal is not the one") && line.contains("--recover"), "{line}");
    assert_eq!(fs::read(&journal).unwrap(), older_copy, "the journal was changed");
    assert_eq!(checkpoint_names(&workspace).last(), Some(&newest));
    let output = audit(&config, &[]);
    assert!(!output.status.success() && stdout_of(&output).contains("was saved under another journal"), "{output:?}");
    let output = audit(&config, &["--journal-only", "--head", &later_head]);
    assert!(
        !output.status.success() && stdout_of(&output).contains("it was changed, or is an older copy"),
        "{output:?}"
    );

    recover(&workspace, &config);
    assert_eq!(workspace.journal("run").recovery().unwrap().unwrap().checkpoint, newest);
    assert_eq!(fs::read(state.join("journal.sqlite.replaced-1")).unwrap(), older_copy, "the old journal was not kept");
    let output = audit(&config, &[]);
    let text = stdout_of(&output);
    assert!(output.status.success() && text.contains(&format!("it begins with checkpoint {newest}")), "{output:?}");
    run_to_completion(&workspace, &workspace.run_file_with_checkpoints("uninterrupted"), 1);
    assert!(workspace.parameters("run") == workspace.parameters("uninterrupted"));
}

#[test]
fn a_missing_or_damaged_journal_is_refused_and_the_run_can_be_recovered() {
    let workspace = Workspace::new();
    let (config, state) = (workspace.run_file_with_checkpoints("run"), workspace.path("run/coordinator"));
    let journal = state.join("journal.sqlite");
    train_and_stop(&workspace, &config, 3);
    let content = fs::read(&journal).unwrap();

    fs::remove_file(&journal).unwrap();
    let line = serve_error(&config);
    assert!(line.contains("there is no journal") && line.contains("--recover"), "{line}");
    assert!(!journal.exists(), "the coordinator created a journal");
    // An empty file counts as a missing journal.
    fs::write(&journal, b"").unwrap();
    assert!(serve_error(&config).contains("there is no journal"));
    assert!(!audit(&config, &[]).status.success());

    // Flips one bit of a record.
    let (mut flipped, pattern) = (content.clone(), b"cross_entropy");
    let position = content.windows(pattern.len()).position(|window| window == pattern).unwrap();
    flipped[position] ^= 1;
    for damaged in
        [&flipped[..], &content[..content.len() / 2], b"text that is not a journal but has enough bytes for a header"]
    {
        fs::write(&journal, damaged).unwrap();
        let line = serve_error(&config);
        assert!(line.contains("the journal is damaged") && line.contains("--recover"), "{line}");
        assert_eq!(fs::read(&journal).unwrap(), damaged);
        let output = audit(&config, &[]);
        assert!(!output.status.success(), "{output:?}");
    }

    fs::remove_file(&journal).unwrap();
    recover(&workspace, &config);
    assert!(audit(&config, &[]).status.success());
    run_to_completion(&workspace, &workspace.run_file_with_checkpoints("uninterrupted"), 1);
    assert!(workspace.parameters("run") == workspace.parameters("uninterrupted"));
}

#[test]
fn an_audit_compares_the_checkpoints_with_the_journal() {
    let workspace = Workspace::new();
    let config = workspace.run_file_with_checkpoints("run");
    train_and_stop(&workspace, &config, 3);
    let folder = workspace.path("run/checkpoints");
    let names = checkpoint_names(&workspace);
    let [first, second, ..] = &names[..] else { panic!("{names:?}") };
    for (from, to) in [(first.as_str(), "temporary"), (second, first), ("temporary", second)] {
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    let output = audit(&config, &[]);
    let text = stdout_of(&output);
    assert!(
        !output.status.success() && text.contains(&format!("checkpoint {first} has another name, step")),
        "{output:?}"
    );
    assert!(audit(&config, &["--journal-only"]).status.success());
    fs::remove_dir_all(folder.join(second)).unwrap();
    let text = stdout_of(&audit(&config, &[]));
    assert!(text.contains(&format!("checkpoint {second} is missing")), "{text}");
    fs::rename(&folder, workspace.path("moved")).unwrap();
    let line = error_line(&audit(&config, &[]));
    assert!(line.contains("--journal-only"), "{line}");
}
