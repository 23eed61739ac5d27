//! Progress of a run on the terminal.

use std::time::{Duration, Instant};

use config::RunFile;
use indicatif::{ProgressBar, ProgressStyle};
use proto::v1::StatusResponse;

/// Interval of lines if there is no terminal for progress bars.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// A progress bar for each stage; plain lines if the output is not a terminal.
pub struct Progress {
    bars: Vec<ProgressBar>,
    last_line_at: Option<Instant>,
}

impl Progress {
    /// One bar per stage.
    #[must_use]
    pub fn new(run: &RunFile) -> Self {
        let template = "{prefix:>10} {bar:32} {pos:>5}/{len:<5} {msg}";
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        let bars = run.stages.iter().map(|stage| {
            let bar = ProgressBar::new(stage.steps).with_style(style.clone());
            bar.set_prefix(stage.name.clone());
            bar
        });
        Self { bars: bars.collect(), last_line_at: None }
    }

    /// Updates the bars.
    pub fn show(&mut self, status: &StatusResponse) {
        let stage = status.stage as usize;
        let reward = status.reward.map(|reward| format!("  reward {reward:.3}")).unwrap_or_default();
        let numbers = format!("loss {:.4}{reward}  {:.0} images/s", status.loss, status.images_per_second);
        for finished in self.bars.iter().take(stage).filter(|bar| !bar.is_finished()) {
            finished.set_position(finished.length().unwrap_or_default());
            finished.abandon();
        }
        let Some(bar) = self.bars.get(stage) else { return };
        if status.step == 0 {
            return;
        }
        bar.set_message(numbers.clone());
        bar.set_position(status.step);
        if bar.is_hidden() && self.last_line_at.is_none_or(|at| at.elapsed() > LINE_INTERVAL) {
            println!("{} {}/{}  {numbers}", status.stage_name, status.step, status.steps);
            self.last_line_at = Some(Instant::now());
        }
    }

    /// Ends the bars, and leaves them on the screen.
    pub fn finish(&self) {
        for bar in self.bars.iter().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}
