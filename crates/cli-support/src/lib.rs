//! Code for both programs' use of the terminal: logs, output, progress bars, signals, completions,
//! and permissions of new files.

mod completions;
mod logs;
mod modes;
mod open_files;
mod output;
mod progress;
mod signals;

pub use completions::Completions;
pub use logs::Logs;
pub use modes::share_new_files_with_group;
pub use open_files::raise_open_files_limit;
pub use output::{complain, one_line, out, tell};
pub use progress::{bar, hidden, spinner};
pub use signals::EndSignals;

/// Whether `NO_COLOR` is set: <https://no-color.org>.
#[must_use]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
