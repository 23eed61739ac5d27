use std::io::{BufWriter, Write};

use caption_metrics::{Form, Report};

/// How scores are printed.
#[derive(clap::Args)]
pub struct Print {
    /// Print one JSON object, with the values of all images together and of each.
    #[arg(long)]
    json: bool,
    /// Print one line an image, tab-separated, after a header.
    #[arg(long, conflicts_with = "json")]
    per_item: bool,
}

impl Print {
    /// Prints the scores of the images that are called `ids`; what to know about them goes to standard error, unless JSON has it.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&self, report: &Report, ids: &[String]) -> Result<(), String> {
        let form = match (self.json, self.per_item) {
            (true, _) => Form::Json,
            (_, true) => Form::PerItem,
            _ => Form::Table,
        };
        if form != Form::Json {
            report.notes.iter().for_each(|note| super::warn(format_args!("{note}")));
        }
        let mut out = BufWriter::new(cli_support::out());
        let printed = report.print(ids, form, &mut out).and_then(|()| out.flush());
        printed.map_err(|error| error.to_string())
    }
}
