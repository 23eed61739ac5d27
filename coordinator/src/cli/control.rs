//! `coordinator pause`, `resume`, `checkpoint`, `evaluate`, `drain` and `stop`: steer a run while it goes on.

use clap::Args;
use proto::v1;
use serde_json::json;
use std::io::Write;

use super::admin::Admin;

/// A wish, but for what is wished.
#[derive(Debug, Args)]
pub struct Control {
    #[command(flatten)]
    admin: Admin,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A wish that concerns one worker.
#[derive(Debug, Args)]
pub struct Drain {
    /// The worker's rank, as `coordinator status` shows it.
    rank: u32,
    #[command(flatten)]
    control: Control,
}

impl Control {
    /// Asks and prints what comes of it.
    pub fn run(self, command: v1::Command) -> anyhow::Result<()> {
        self.ask(command, 0)
    }

    fn ask(self, command: v1::Command, rank: u32) -> anyhow::Result<()> {
        let request = v1::ControlRequest { command: command.into(), rank };
        let v1::ControlResponse { message } = self.admin.ask(async |mut client| client.control(request).await)?;
        if self.json {
            writeln!(cli_support::out(), "{}", json!({ "message": message }))?;
        } else {
            writeln!(cli_support::out(), "{message}")?;
        }
        Ok(())
    }
}

impl Drain {
    /// Asks and prints what comes of it.
    pub fn run(self) -> anyhow::Result<()> {
        self.control.ask(v1::Command::Drain, self.rank)
    }
}
