//! `coordinator status`: the status of a run.

use std::fmt::Write as _;
use std::io::Write as _;

use clap::Args;
use proto::v1;
use serde_json::json;

use super::connection_args::AdminArgs;
use crate::formatting::phase_name;

/// Print the status of a run.
///
/// Prints the position, loss and speed of the run, and the phase and step of each worker.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator status --coordinator http://127.0.0.1:7070 --json")]
pub struct StatusCommand {
    #[command(flatten)]
    admin: AdminArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    /// Requests and prints the status.
    pub fn run(self) -> anyhow::Result<()> {
        let status = self.admin.call(async |mut client| client.status(v1::StatusRequest {}).await)?;
        if self.json {
            writeln!(cli_support::stdout(), "{}", status_json(&status))?;
        } else {
            write!(cli_support::stdout(), "{}", status_text(&status))?;
        }
        Ok(())
    }
}

/// A status as JSON.
pub(super) fn status_json(status: &v1::StatusResponse) -> serde_json::Value {
    let position = |position: &v1::Position| json!({ "stage": position.stage, "step": position.step, "generation": position.generation });
    let member = |member: &v1::Member| {
        json!({
            "rank": member.worker_id,
            "host": member.host,
            "device": member.device,
            "phase": phase_name(member.phase()),
            "position": member.position.as_ref().map(position),
            "seconds_since_heard": member.seconds_since_heard,
            "images_per_second": member.images_per_second,
            "tokens_per_second": member.tokens_per_second,
            "compute_seconds": member.compute_seconds,
        })
    };
    json!({
        "run": status.run,
        "run_id": status.run_id,
        "state": status.state().name(),
        "reason": status.reason,
        "generation": status.generation,
        "stage": status.stage,
        "stage_name": status.stage_name,
        "step": status.step,
        "steps": status.steps,
        "loss": status.loss,
        "reward": status.reward,
        "images_per_second": status.images_per_second,
        "tokens_per_second": status.tokens_per_second,
        "seconds_left": status.seconds_left,
        "min_workers": status.min_workers,
        "slowest_rank": status.slowest_worker,
        "lag_seconds": status.lag_seconds,
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
    })
}

fn status_text(status: &v1::StatusResponse) -> String {
    let mut text = format!("run         {} ({})\nstate       {}", status.run, status.run_id, status.state());
    if !status.reason.is_empty() {
        text += &format!(" ({})", status.reason);
    }
    text += &format!("\ngeneration  {}\n", status.generation);
    text += &format!(
        "stage       {} ({})\nstep        {} of {}\n",
        status.stage, status.stage_name, status.step, status.steps
    );
    // A restarted coordinator has no loss before its first step.
    if status.images_per_second > 0.0 {
        text += &format!("loss        {:.4}\n", status.loss);
    }
    if let Some(reward) = status.reward {
        text += &format!("reward      {reward:.4}\n");
    }
    text += &format!("images/s    {:.1}\n", status.images_per_second);
    if let Some(worker_id) = status.slowest_worker {
        text += &format!("slowest     worker {worker_id}, {:.3} s behind\n", status.lag_seconds);
    }
    if !status.members.is_empty() {
        text += &format!(
            "\n{:>6}  {:<24} {:<8} {:<11} {:>6} {:>9}  {}\n",
            "worker", "host", "device", "phase", "stage", "step", "last seen"
        );
    }
    for member in &status.members {
        let v1::Position { stage, step, .. } = member.position.unwrap_or_default();
        let (worker_id, host, device, last_seen) =
            (member.worker_id, &member.host, &member.device, member.seconds_since_heard);
        // Writing to a string does not fail.
        _ = writeln!(
            text,
            "{worker_id:>6}  {host:<24} {device:<8} {:<11} {stage:>6} {step:>9}  {last_seen:.1} s ago",
            phase_name(member.phase())
        );
    }
    text
}
