//! `coordinator report`: what came of a run, on one page.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::history::State;
use crate::report::Report;

/// Write what came of a run into one HTML file.
///
/// The file needs nothing else: curves, scores, captions with their images, faults and settings are in it. A run that goes on can be
/// reported on, too. Images are read from the data that the run file names, where they can be.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  coordinator report --config configs/demo.yaml --out report.html\n  \
                        coordinator report --config configs/demo.yaml --json > report.json")]
pub struct ReportCommand {
    #[command(flatten)]
    state: State,
    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Print the same facts as JSON instead.
    #[arg(long)]
    json: bool,
}

impl ReportCommand {
    /// Reads and writes.
    pub fn run(self) -> anyhow::Result<()> {
        let progress = cli_support::spinner("reading the journal");
        let report = Report::read(&self.state.open()?)?;
        progress.finish_and_clear();
        if self.json {
            writeln!(cli_support::out(), "{}", serde_json::to_string(&report)?)?;
            return Ok(());
        }
        let page = report.page();
        std::fs::write(&self.out, &page).with_context(|| self.out.display().to_string())?;
        writeln!(cli_support::out(), "{}: {} KiB", self.out.display(), page.len().div_ceil(1024))?;
        Ok(())
    }
}
