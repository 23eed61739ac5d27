//! Runs coordinators and workers as child processes, for demos, load tests and end-to-end tests.
//!
//! Dropping the handle of a process kills the process, so no process outlives the program that
//! started it. Calls block; asynchronous callers poll [`Process::try_wait`].
//!
//! - `process`: a child process with a log file.
//! - `coordinator`: starts a coordinator and reads its addresses.

mod coordinator;
mod error;
mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub use coordinator::Coordinator;
pub use error::Error;
pub use process::Process;

/// The path of the program `name` in the folder of `target` that the running program was built in.
///
/// # Errors
/// The program has not been built, or the path of the running program is unknown.
pub fn program_path(name: &str) -> Result<PathBuf, Error> {
    let current_exe = std::env::current_exe().map_err(Error::CurrentExe)?;
    // target/PROFILE/PROGRAM, or target/PROFILE/deps/TEST.
    let folder = current_exe.ancestors().skip(1).find(|folder| !folder.ends_with("deps")).unwrap_or(Path::new("."));
    let path = folder.join(name);
    if path.exists() { Ok(path) } else { Err(Error::MissingProgram { path }) }
}

/// A command that runs the program at [`program_path`]`(name)`, with an empty standard input.
///
/// # Errors
/// As for [`program_path`].
pub fn command(name: &str) -> Result<Command, Error> {
    let mut command = Command::new(program_path(name)?);
    command.stdin(Stdio::null());
    Ok(command)
}

/// The SHA-256 of a worker's parameters in the output of `worker join`, which prints it at the end
/// of a run; none if the worker left before.
#[must_use]
pub fn parameters_sha256(stdout: &str) -> Option<&str> {
    stdout.split_whitespace().find_map(|word| word.strip_prefix("parameters_sha256="))
}
