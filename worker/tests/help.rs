//! `worker --help`. (This test also makes cargo build the program, which the end-to-end tests
//! start.)

use std::process::Command;

#[test]
fn help_lists_the_subcommands() {
    let output = Command::new(env!("CARGO_BIN_EXE_worker")).arg("--help").output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("join"));
}
