//! Command-line support of the programs: logs, output, progress bars, signals, completions, and
//! limits and permissions of files.
//!
//! - `logs`: the flag and the subscriber for logs.
//! - `output`: standard output and standard error, with control characters escaped.
//! - `progress`: progress bars and spinners on a terminal.
//! - `signals`: waits for SIGTERM, SIGINT and SIGHUP.
//! - `completions`: the command that prints shell completions.
//! - `file_modes`: the permissions of new files.
//! - `open_files`: the limit of open files.

mod completions;
mod file_modes;
mod logs;
mod open_files;
mod output;
mod progress;
mod signals;

pub use completions::Completions;
pub use file_modes::share_new_files_with_group;
pub use logs::LogArgs;
pub use open_files::raise_open_files_limit;
pub use output::{one_line, print_error, print_line, stdout};
pub use progress::{hidden_progress_bar, progress_bar, spinner};
pub use signals::ShutdownSignals;

/// Whether the environment variable `NO_COLOR` is set and not empty. Users turn colours off with
/// it: <https://no-color.org>.
#[must_use]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
