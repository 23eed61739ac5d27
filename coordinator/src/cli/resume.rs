//! `coordinator resume`: lets a run go on that its guard has paused.

use clap::Args;
use proto::v1;
use serde_json::json;

use super::admin::Admin;

/// Let a run go on that its guard has paused.
///
/// Fails if the run is not paused. `coordinator status` says why it is.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator resume --coordinator http://127.0.0.1:7070")]
pub struct Resume {
    #[command(flatten)]
    admin: Admin,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Resume {
    /// Asks and prints.
    pub fn run(self) -> anyhow::Result<()> {
        self.admin.ask(async |mut client| client.resume(v1::ResumeRequest {}).await)?;
        if self.json {
            println!("{}", json!({ "resumed": true }));
        } else {
            println!("the run goes on");
        }
        Ok(())
    }
}
