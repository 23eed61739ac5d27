//! The record of a run that was lost, damaged, changed, or taken back: nobody goes on as if nothing had happened.

use std::fs;
use std::path::Path;

use test_support::{Coordinator, Workspace, run_to_completion, error_line, run, wait_for};

/// The names of sealed checkpoints, in order.
fn checkpoints(workspace: &Workspace) -> Vec<String> {
    let entries = fs::read_dir(workspace.path("run/checkpoints")).into_iter().flatten().flatten();
    let sealed = entries.filter(|entry| entry.path().join("checkpoint.json").is_file());
    let mut names: Vec<String> = sealed.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Goes on with a run until so many checkpoints are sealed, and stops it in good order.
fn go_on(workspace: &Workspace, config: &Path, until: usize) {
    let coordinator = Coordinator::start(workspace, config);
    let worker = coordinator.start_worker(workspace, 0);
    wait_for("checkpoints", || (checkpoints(workspace).len() >= until).then_some(()));
    coordinator.process.terminate();
    assert!(coordinator.process.succeeds() && worker.succeeds());
}

/// Tries to serve a run; the error line.
fn refused(config: &Path) -> String {
    let config = config.to_str().unwrap();
    let serve = ["serve", "--config", config, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    error_line(&run("coordinator", &serve))
}

fn audit(config: &Path, more: &[&str]) -> std::process::Output {
    let arguments = [&["audit", "--config", config.to_str().unwrap()][..], more].concat();
    run("coordinator", &arguments)
}

/// What an audit says.
fn printed(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Recovers a run whose journal is unusable, and runs it to its end.
fn recover(workspace: &Workspace, config: &Path) {
    let coordinator = Coordinator::start_with(workspace, config, "http", &["--recover"]);
    assert!(coordinator.start_worker(workspace, 0).succeeds() && coordinator.process.succeeds());
}

#[test]
fn an_older_copy_of_the_journal_is_seen_and_the_run_goes_on_from_the_newest_checkpoint() {
    let workspace = Workspace::new();
    let (config, state) = (workspace.run_file_with_checkpoints("run"), workspace.path("run/coordinator"));
    go_on(&workspace, &config, 2);
    let whole = audit(&config, &[]);
    assert!(whole.status.success(), "{whole:?}");
    let head = printed(&whole).lines().last().unwrap().strip_prefix("last record ").unwrap().to_owned();
    let journal = state.join("journal.sqlite");
    let older = fs::read(&journal).unwrap();
    go_on(&workspace, &config, 5);
    let known = audit(&config, &["--head", &head]);
    assert!(known.status.success() && printed(&known).contains("\nclean: "), "{known:?}");
    let later = printed(&known).lines().last().unwrap().strip_prefix("last record ").unwrap().to_owned();
    fs::write(&journal, &older).unwrap();

    let newest = checkpoints(&workspace).last().unwrap().clone();
    let line = refused(&config);
    assert!(line.contains("the journal is not the one") && line.contains("--recover"), "{line}");
    assert_eq!(fs::read(&journal).unwrap(), older, "nothing is changed");
    assert_eq!(checkpoints(&workspace).last(), Some(&newest));
    let found = audit(&config, &[]);
    assert!(!found.status.success() && printed(&found).contains("was saved under another journal"), "{found:?}");
    let found = audit(&config, &["--journal-only", "--head", &later]);
    assert!(!found.status.success() && printed(&found).contains("it was changed, or is an older copy"), "{found:?}");

    recover(&workspace, &config);
    let recovered = workspace.events("run", "recovered");
    assert_eq!(recovered[0]["checkpoint"], newest.as_str());
    assert_eq!(fs::read(state.join("journal.sqlite.replaced-1")).unwrap(), older, "the old one is kept");
    let after = audit(&config, &[]);
    let text = printed(&after);
    assert!(after.status.success() && text.contains(&format!("it begins with checkpoint {newest}")), "{after:?}");
    run_to_completion(&workspace, &workspace.run_file_with_checkpoints("alone"), 1);
    assert!(workspace.parameters("run") == workspace.parameters("alone"));
}

#[test]
fn checkpoints_without_a_journal_are_not_taken_for_a_new_run_and_a_damaged_one_is_not_used() {
    let workspace = Workspace::new();
    let (config, state) = (workspace.run_file_with_checkpoints("run"), workspace.path("run/coordinator"));
    let journal = state.join("journal.sqlite");
    go_on(&workspace, &config, 3);
    let whole = fs::read(&journal).unwrap();

    fs::remove_file(&journal).unwrap();
    let line = refused(&config);
    assert!(line.contains("there is no journal") && line.contains("--recover"), "{line}");
    assert!(!journal.exists(), "no empty journal is left behind");
    // What is empty is no journal.
    fs::write(&journal, b"").unwrap();
    assert!(refused(&config).contains("there is no journal"));
    assert!(!audit(&config, &[]).status.success());

    // One bit of a number in a row.
    let (mut flipped, needle) = (whole.clone(), b"cross_entropy");
    let at = whole.windows(needle.len()).position(|window| window == needle).unwrap();
    flipped[at] ^= 1;
    for damaged in [&flipped[..], &whole[..whole.len() / 2], b"not a journal at all, but long enough to be looked at"] {
        fs::write(&journal, damaged).unwrap();
        let line = refused(&config);
        assert!(line.contains("the journal is damaged") && line.contains("--recover"), "{line}");
        assert_eq!(fs::read(&journal).unwrap(), damaged);
        let found = audit(&config, &[]);
        assert!(!found.status.success(), "{found:?}");
    }

    fs::remove_file(&journal).unwrap();
    recover(&workspace, &config);
    assert!(audit(&config, &[]).status.success());
    run_to_completion(&workspace, &workspace.run_file_with_checkpoints("alone"), 1);
    assert!(workspace.parameters("run") == workspace.parameters("alone"));
}

#[test]
fn an_audit_compares_the_checkpoints() {
    let workspace = Workspace::new();
    let config = workspace.run_file_with_checkpoints("run");
    go_on(&workspace, &config, 3);
    let folder = workspace.path("run/checkpoints");
    let names = checkpoints(&workspace);
    let [first, second, ..] = &names[..] else { panic!("{names:?}") };
    for (from, to) in [(first.as_str(), "aside"), (second, first), ("aside", second)] {
        fs::rename(folder.join(from), folder.join(to)).unwrap();
    }
    let found = audit(&config, &[]);
    let text = printed(&found);
    assert!(
        !found.status.success() && text.contains(&format!("checkpoint {first} has another name, step")),
        "{found:?}"
    );
    assert!(audit(&config, &["--journal-only"]).status.success());
    fs::remove_dir_all(folder.join(second)).unwrap();
    let text = printed(&audit(&config, &[]));
    assert!(text.contains(&format!("checkpoint {second} is missing")), "{text}");
    fs::rename(&folder, workspace.path("moved")).unwrap();
    let line = error_line(&audit(&config, &[]));
    assert!(line.contains("--journal-only"), "{line}");
}
