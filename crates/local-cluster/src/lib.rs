//! Coordinators and workers as child processes of a demo, a load test or an end-to-end test.
//!
//! A process is killed when its handle is dropped, so none outlives the program that started it.
//! Calls block; asynchronous callers poll [`Process::try_wait`].

mod coordinator;
mod error;
mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use coordinator::Coordinator;
pub use error::Error;
pub use process::Process;

/// The path of a program that was built beside the running one.
///
/// # Errors
/// It does not exist.
pub fn program(name: &str) -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(Error::OwnPath)?;
    // target/PROFILE/PROGRAM, or target/PROFILE/deps/TEST.
    let folder = own.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).unwrap_or(Path::new("."));
    let path = folder.join(name);
    if path.exists() { Ok(path) } else { Err(Error::Missing { path }) }
}

/// A command that runs a program that was built beside the running one, without standard input.
///
/// # Errors
/// It does not exist.
pub fn command(name: &str) -> Result<Command, Error> {
    let mut command = Command::new(program(name)?);
    command.stdin(Stdio::null());
    Ok(command)
}

/// The SHA-256 of a worker's parameters, which `worker join` prints at the end of a run.
#[must_use]
pub fn parameters_sha256(stdout: &str) -> Option<&str> {
    stdout.split_whitespace().find_map(|word| word.strip_prefix("parameters_sha256="))
}
