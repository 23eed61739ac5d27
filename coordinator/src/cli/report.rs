//! `coordinator report`: the report of a run as an HTML file or as JSON.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::journal_args::JournalArgs;
use crate::report::Report;

/// Write a report of a run as one HTML file.
///
/// The file is self-contained. It has curves, scores, captions with their images, failures and
/// settings. The run may be in progress. Images are read from the data that the run file names; the
/// report has none if they cannot be read. Prints the name and size of the file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  coordinator report --config configs/demo.yaml --out report.html\n  \
                        coordinator report --config configs/demo.yaml --json > report.json")]
pub struct ReportCommand {
    #[command(flatten)]
    journal: JournalArgs,
    /// The file to write.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Print the data of the report as JSON instead.
    #[arg(long)]
    json: bool,
}

impl ReportCommand {
    /// Reads the journal and writes the report.
    pub fn run(self) -> anyhow::Result<()> {
        let progress = cli_support::spinner("reading the journal");
        let report = Report::read(&self.journal.open()?)?;
        progress.finish_and_clear();
        if self.json {
            writeln!(cli_support::stdout(), "{}", serde_json::to_string(&report)?)?;
            return Ok(());
        }
        let html = report.to_html();
        std::fs::write(&self.out, &html).with_context(|| self.out.display().to_string())?;
        writeln!(cli_support::stdout(), "{}: {} KiB", self.out.display(), html.len().div_ceil(1024))?;
        Ok(())
    }
}
