//! `coordinator tensorboard`: exports the journal as TensorBoard event files.

use std::io::Write;
use std::{path::PathBuf, time::Duration};

use clap::Args;
use journal::ReadOnlyJournal;
use serde_json::json;

use super::journal_args::JournalArgs;
use crate::tensorboard::{EventFileWriter, WrittenCounts};

/// Time between two reads of the journal with `--follow`.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Write a TensorBoard event file from a run's journal.
///
/// The file has metrics of all steps, scores and captions of evaluations, and the run file. It
/// replaces the file of an earlier export. Prints the name of the file, and the numbers of steps
/// and evaluations.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coordinator tensorboard --config configs/demo.yaml --out runs/demo/tensorboard --follow &\n  \
                        tensorboard --logdir runs/demo/tensorboard"
)]
pub struct TensorboardCommand {
    #[command(flatten)]
    journal: JournalArgs,
    /// Folder to write to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Continue with new records until the run is finished.
    #[arg(long)]
    follow: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl TensorboardCommand {
    /// Writes the event file.
    pub fn run(self) -> anyhow::Result<()> {
        let journal = self.journal.open()?;
        let progress = cli_support::spinner("exporting the journal");
        let (mut writer, mut written) = EventFileWriter::create(&self.out, &journal)?;
        progress.set_message("following the run");
        if self.follow {
            follow_run(&journal, &mut writer, &mut written)?;
        }
        progress.finish_and_clear();
        let WrittenCounts { steps, evaluations } = written;
        if self.json {
            writeln!(
                cli_support::stdout(),
                "{}",
                json!({ "file": writer.path(), "steps": steps, "evaluations": evaluations })
            )?;
        } else {
            writeln!(cli_support::stdout(), "{}: {steps} steps, {evaluations} evaluations", writer.path().display())?;
        }
        Ok(())
    }
}

/// Writes new records until the run is finished.
fn follow_run(
    journal: &ReadOnlyJournal,
    writer: &mut EventFileWriter,
    written: &mut WrittenCounts,
) -> anyhow::Result<()> {
    loop {
        // Read first: when the run is finished, all of its records are in the journal.
        let is_finished = journal.is_finished()?;
        let WrittenCounts { steps, evaluations } = writer.write_new(journal)?;
        written.steps += steps;
        written.evaluations += evaluations;
        if is_finished {
            return Ok(());
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
