use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Drawn on a terminal; elsewhere the last line says it all.
pub fn images_bar(images: u64) -> ProgressBar {
    let target =
        if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} images  {per_sec}  {eta} left");
    ProgressBar::with_draw_target(Some(images), target).with_style(style.unwrap_or(ProgressStyle::default_bar()))
}
