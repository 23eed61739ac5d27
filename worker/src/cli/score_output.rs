//! The output of commands that print scores.

use std::io::{BufWriter, Write};

use anyhow::Result;
use caption_metrics::{Report, ReportFormat};

/// The form in which scores are printed.
#[derive(clap::Args)]
pub struct ScoreOutput {
    /// Print one JSON object with the scores over all images and of each image.
    #[arg(long)]
    json: bool,
    /// Print a header and one line per image, separated by tabs.
    #[arg(long, conflicts_with = "json")]
    per_item: bool,
}

impl ScoreOutput {
    /// Prints the scores of the images `ids`. The JSON object includes the notes; otherwise they go
    /// to standard error.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&self, report: &Report, ids: &[String]) -> Result<()> {
        let form = match (self.json, self.per_item) {
            (true, _) => ReportFormat::Json,
            (_, true) => ReportFormat::PerItem,
            _ => ReportFormat::Table,
        };
        if form != ReportFormat::Json {
            report.notes.iter().for_each(|note| super::print_message(format_args!("{note}")));
        }
        let mut out = BufWriter::new(cli_support::stdout());
        report.print(ids, form, &mut out).and_then(|()| out.flush())?;
        Ok(())
    }
}
