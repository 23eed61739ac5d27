//! Permissions of the files that the programs write, which do not depend on the umask, and warnings
//! about secrets that all users can read.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use test_support::{Process, Workspace, command, error_line, program_path, run};

/// A command that runs a program with this umask.
fn command_with_umask(umask: &str, name: &str) -> Command {
    let program = command(name);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\"")]).arg(program_path(name));
    for (variable, value) in program.get_envs() {
        match value {
            Some(value) => shell.env(variable, value),
            None => shell.env_remove(variable),
        };
    }
    shell
}

/// Runs a program with this umask. It must succeed.
fn run_with_umask(umask: &str, name: &str, arguments: &[&str]) {
    let output = command_with_umask(umask, name).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Checks the permissions of a folder and of all files and folders in it. Returns the number of
/// files.
fn check_permissions(folder: &Path) -> usize {
    let permissions = |path: &Path| path.symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(permissions(folder), 0o750, "{}", folder.display());
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files += check_permissions(&path);
        } else {
            assert_eq!(permissions(&path), 0o640, "{}", path.display());
            files += 1;
        }
    }
    files
}

#[test]
fn output_files_are_readable_by_user_and_group_only_with_any_umask() {
    let workspace = Workspace::new();
    for umask in ["000", "077"] {
        let name = format!("run-{umask}");
        let run_file = workspace.run_file(&name, 1, "");
        let mut serve = command_with_umask(umask, "coordinator");
        serve.arg("serve").arg("--config").arg(&run_file).args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
        let mut coordinator = Process::start(&mut serve, workspace.path("coordinator.log"));
        let line = coordinator.read_line();
        let address = line.split_whitespace().find_map(|word| word.strip_prefix("grpc=")).unwrap();
        let url = format!("http://{address}");
        run_with_umask(umask, "worker", &["join", "--coordinator", &url, "--threads", "1"]);
        assert!(coordinator.succeeds());

        let output = workspace.path(&name);
        let path = |name: &str| output.join(name).to_string_lossy().into_owned();
        let state = path("coordinator");
        run_with_umask(umask, "coordinator", &["tensorboard", "--state", &state, "--out", &path("tensorboard")]);
        run_with_umask(umask, "coordinator", &["report", "--state", &state, "--out", &path("report.html")]);
        // The journal, captions of two evaluations, at least one checkpoint, and the two files
        // above.
        assert!(check_permissions(&output) >= 10, "{}", output.display());
        for name in ["coordinator/journal.sqlite", "captions", "checkpoints", "report.html"] {
            assert!(output.join(name).exists(), "{name}");
        }
    }
}

#[test]
fn a_secret_that_all_users_can_access_is_warned_about_and_an_endless_file_is_refused() {
    let workspace = Workspace::new();
    let token = workspace.path("token");
    std::fs::write(&token, "the-token-of-the-workers\n").unwrap();
    let path = token.to_string_lossy().into_owned();
    // No process listens at this address. The warning comes before the worker connects.
    let join = ["join", "--coordinator", "http://127.0.0.1:1", "--join-timeout", "0", "--join-token-file"];
    for (mode, has_warning) in [(0o644, true), (0o602, true), (0o640, false), (0o600, false)] {
        std::fs::set_permissions(&token, PermissionsExt::from_mode(mode)).unwrap();
        let output = run("worker", &[&join[..], &[&path]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.contains(&format!("chmod 600 {path}")), has_warning, "{mode:o}: {stderr}");
        assert!(!stderr.contains("the-token-of"), "{stderr}");
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
        assert!(!workspace.path("run").exists(), "the coordinator left its state behind");
    }
}
