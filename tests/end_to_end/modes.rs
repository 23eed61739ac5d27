//! Permissions of the files that the programs write, whatever umask they inherit, and warnings
//! about secrets that all users can read.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use test_support::{Process, Workspace, command, error_line, program, run};

/// A command that runs `name` with this umask.
fn masked(umask: &str, name: &str) -> Command {
    let plain = command(name);
    let mut masked = Command::new("sh");
    masked.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(program(name));
    for (variable, value) in plain.get_envs() {
        match value {
            Some(value) => masked.env(variable, value),
            None => masked.env_remove(variable),
        };
    }
    masked
}

/// Runs a command with this umask to its end, which has to be a good one.
fn done(umask: &str, name: &str, arguments: &[&str]) {
    let output = masked(umask, name).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Checks the modes of a folder and of all in it; how many files those are.
fn check(folder: &Path) -> usize {
    let mode = |path: &Path| path.symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(folder), 0o750, "{}", folder.display());
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += check(&path);
        } else {
            assert_eq!(mode(&path), 0o640, "{}", path.display());
            files += 1;
        }
    }
    files
}

#[test]
fn what_a_run_writes_is_for_its_user_and_group_whatever_the_umask() {
    let workspace = Workspace::new();
    for umask in ["000", "077"] {
        let name = format!("run-{umask}");
        let run_file = workspace.run_file(&name, 1, "");
        let mut serve = masked(umask, "coordinator");
        serve.arg("serve").arg("--config").arg(&run_file).args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let mut coordinator = Process::start(&mut serve, workspace.path("coordinator.log"));
        let line = coordinator.line();
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("grpc=")).unwrap();
        let url = format!("http://{address}");
        done(umask, "worker", &["join", "--coordinator", &url, "--threads", "1"]);
        assert!(coordinator.finish().0);

        let output = workspace.path(&name);
        let path = |name: &str| output.join(name).to_string_lossy().into_owned();
        let state = path("coordinator");
        done(umask, "coordinator", &["tensorboard", "--state", &state, "--out", &path("tensorboard")]);
        done(umask, "coordinator", &["report", "--state", &state, "--out", &path("report.html")]);
        // Journal, captions of two evaluations, a checkpoint at least, and the two above.
        assert!(check(&output) >= 10, "{}", output.display());
        for part in ["coordinator/journal.sqlite", "captions", "checkpoints", "report.html"] {
            assert!(output.join(part).exists(), "{part}");
        }
    }
}

#[test]
fn a_secret_that_everybody_can_read_is_warned_about_and_one_without_end_refused() {
    let workspace = Workspace::new();
    let token = workspace.path("token");
    std::fs::write(&token, "the-token-of-the-workers\n").unwrap();
    let path = token.to_string_lossy().into_owned();
    // Nobody listens there: what is said comes before.
    let join = ["join", "--coordinator", "http://127.0.0.1:1", "--join-timeout", "0", "--join-token-file"];
    for (mode, warned) in [(0o644, true), (0o602, true), (0o640, false), (0o600, false)] {
        std::fs::set_permissions(&token, PermissionsExt::from_mode(mode)).unwrap();
        let output = run("worker", &[&join[..], &[&path]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains(&format!("chmod 600 {path}")), warned, "{mode:o}: {said}");
        assert!(!said.contains("the-token-of"), "{said}");
    }
    for (options, expected) in [
        (&["--join-token-file", "/dev/zero"][..], "/dev/zero: it has more than 65536 bytes"),
        (
            &["--tls-ca", "/dev/zero", "--tls-cert", "/dev/zero", "--tls-key", "/dev/zero"],
            "/dev/zero: it has more than 1048576 bytes",
        ),
    ] {
        let url = if options.len() > 2 { "https://127.0.0.1:1" } else { "http://127.0.0.1:1" };
        let error = error_line(&run("worker", &[&["join", "--coordinator", url], options].concat()));
        assert!(error.starts_with(expected), "{error}");
        let run_file = workspace.run_file("run", 1, "").to_string_lossy().into_owned();
        let serve = ["serve", "--config", &run_file, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let error = error_line(&run("coordinator", &[&serve[..], options].concat()));
        assert!(error.starts_with(expected), "{error}");
        assert!(!workspace.path("run").exists(), "it left its state behind");
    }
}
