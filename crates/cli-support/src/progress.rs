use std::borrow::Cow;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The interval between a spinner's frames.
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// A progress bar over `length` units, with rate and remaining time. Drawn on stderr if that is a
/// terminal; otherwise nothing is drawn.
#[must_use]
pub fn progress_bar(length: u64, unit: &str) -> ProgressBar {
    let style =
        ProgressStyle::with_template(&format!("{{wide_bar}} {{pos}}/{{len}} {unit}  {{per_sec}}  {{eta}} left"));
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(length), draw_target()).with_style(style)
}

/// A spinner for an operation of unknown duration; drawn as [`progress_bar`] is.
#[must_use]
pub fn spinner(message: impl Into<Cow<'static, str>>) -> ProgressBar {
    let spinner = ProgressBar::with_draw_target(None, draw_target()).with_message(message);
    spinner.enable_steady_tick(SPINNER_INTERVAL);
    spinner
}

/// A progress bar that is not drawn.
#[must_use]
pub fn hidden_progress_bar() -> ProgressBar {
    ProgressBar::hidden()
}

fn draw_target() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}
