//! Arguments of subcommands that read the journal of a run.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use config::RunFile;
use journal::ReadOnlyJournal;

/// The location of a run's journal.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct JournalArgs {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the journal, if it is not `coordinator` in the run's output.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

impl JournalArgs {
    /// Opens the journal for reading. A coordinator may be writing to it.
    pub fn open(&self) -> anyhow::Result<ReadOnlyJournal> {
        let folder = match (&self.config, &self.state) {
            (Some(config), _) => RunFile::load(config)?.journal_folder(),
            // clap requires one of the two.
            (None, state) => state.clone().unwrap_or_default(),
        };
        ReadOnlyJournal::open(&folder).with_context(|| format!("state {}", folder.display()))
    }
}
