//! Command-line support of both programs: logs, output, progress bars, signals, completions, and
//! permissions of new files.

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

/// Whether `NO_COLOR` is set: <https://no-color.org>.
#[must_use]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
