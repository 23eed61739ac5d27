//! `coordinator tensorboard`: the journal as TensorBoard reads it.

use std::io::Write;
use std::{path::PathBuf, time::Duration};

use clap::Args;
use serde_json::json;

use super::history::State;
use crate::{
    journal::history::History,
    tensorboard::{Export, WrittenCounts},
};

/// Between looks at the journal with `--follow`.
const LOOK: Duration = Duration::from_secs(1);

/// Write TensorBoard's event files from a run's journal.
///
/// Has curves of all steps and evaluations, captions of evaluations and the run file. Written again, a file takes the place of the one
/// before.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coordinator tensorboard --config configs/demo.yaml --out runs/demo/tensorboard --follow &\n  \
                        tensorboard --logdir runs/demo/tensorboard"
)]
pub struct Tensorboard {
    #[command(flatten)]
    state: State,
    /// Folder to write to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Go on with what happens from now on, until the run is finished.
    #[arg(long)]
    follow: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Tensorboard {
    /// Writes.
    pub fn run(self) -> anyhow::Result<()> {
        let history = self.state.open()?;
        let progress = cli_support::spinner("writing what the journal has");
        let (mut export, mut written) = Export::create(&self.out, &history)?;
        progress.set_message("following the run");
        if self.follow {
            follow(&history, &mut export, &mut written)?;
        }
        progress.finish_and_clear();
        let WrittenCounts { steps, evaluations } = written;
        if self.json {
            writeln!(
                cli_support::out(),
                "{}",
                json!({ "file": export.path(), "steps": steps, "evaluations": evaluations })
            )?;
        } else {
            writeln!(cli_support::out(), "{}: {steps} steps, {evaluations} evaluations", export.path().display())?;
        }
        Ok(())
    }
}

/// Writes what is recorded until the run is finished.
fn follow(history: &History, export: &mut Export, written: &mut WrittenCounts) -> anyhow::Result<()> {
    loop {
        // Whatever was recorded before the run was finished is there once it is.
        let finished = history.finished()?;
        let WrittenCounts { steps, evaluations } = export.catch_up(history)?;
        written.steps += steps;
        written.evaluations += evaluations;
        if finished {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}
