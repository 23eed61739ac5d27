//! `coordinator pause`, `resume`, `checkpoint`, `evaluate`, `drain` and `stop`: commands to a
//! running coordinator.

use clap::Args;
use proto::v1;
use serde_json::json;
use std::io::Write;

use super::connection_args::AdminArgs;

/// The arguments of a command that affects the whole run, such as `coordinator pause`.
#[derive(Debug, Args)]
pub struct ControlCommand {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// The arguments of `coordinator drain`.
#[derive(Debug, Args)]
pub struct DrainCommand {
    /// The worker id, as `coordinator status` shows it.
    worker_id: u32,
    #[command(flatten)]
    control: ControlCommand,
}

impl ControlCommand {
    /// Sends the command and prints the answer.
    pub fn run(self, command: v1::Command) -> anyhow::Result<()> {
        // Only `drain` has a worker id.
        self.send(command, 0)
    }

    fn send(self, command: v1::Command, worker_id: u32) -> anyhow::Result<()> {
        let request = v1::ControlRequest { command: command.into(), worker_id };
        let v1::ControlResponse { message } = self.admin.call(async |mut client| client.control(request).await)?;
        if self.json {
            writeln!(cli_support::stdout(), "{}", json!({ "message": message }))?;
        } else {
            writeln!(cli_support::stdout(), "{message}")?;
        }
        Ok(())
    }
}

impl DrainCommand {
    /// Sends the command and prints the answer.
    pub fn run(self) -> anyhow::Result<()> {
        self.control.send(v1::Command::Drain, self.worker_id)
    }
}
