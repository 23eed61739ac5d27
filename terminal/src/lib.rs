//! What both programs do alike in a terminal: logs, progress bars, completions.

mod completions;
mod logs;
mod progress;

pub use completions::Completions;
pub use logs::Logs;
pub use progress::{bar, hidden, spinner};

/// Whether colours are unwanted: <https://no-color.org>.
#[must_use]
pub fn no_color() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}
