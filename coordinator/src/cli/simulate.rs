//! `coordinator simulate`: what a coordinator can take.

use std::io::Write;
use std::time::Duration;

use anyhow::ensure;
use clap::Args;

use super::files;
use crate::{load::Load, run::membership::RANKS};

/// Files that this process needs besides the connections of its workers.
const OTHER_FILES: u64 = 100;

/// Measure a coordinator under the load of many workers.
///
/// Starts a coordinator as a process of its own, in a temporary folder, and leads it through a run with light workers: each
/// is a task of this process that speaks the real protocol over a connection of its own, but only pretends to compute. In
/// place of the all-reduce they wait for each other at every step, so all reports of a step arrive at once.
///
/// What is reported:
///
/// - join storm: all workers come at the same moment. How long `Join` takes, with connecting, and how long it is until the last
///   has joined, until the last knows of its generation, and until the first may train.
/// - fan-out of a directive: from the first worker's receipt of a `Train` to the last one's; and from the report that let it be
///   sent to the last one's receipt.
/// - heartbeat: heartbeats have no answer, so a probe takes their way twenty times a second, beside the load: a question over a
///   connection of its own, through the queue of the coordinator, and back. That is more than a heartbeat takes. Counted from
///   when the question was due, so that a late one does not hide what it waited for.
/// - CPU and memory of the coordinator's process; CPU of this one. Both share the machine.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator simulate --workers 10000 --steps 200")]
pub struct Simulate {
    /// Light workers.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(RANKS)))]
    workers: u32,
    /// Steps that they train; there is a checkpoint and an evaluation in the middle and at the end.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// What a step takes at least, in seconds; with 0 they report as fast as they can.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    step_seconds: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Simulate {
    /// Simulates and reports.
    pub fn run(self) -> anyhow::Result<()> {
        let step = Duration::try_from_secs_f64(self.step_seconds);
        ensure!(step.is_ok(), "--step-seconds {}: must be a number of seconds, 0 or more", self.step_seconds);
        let files = files::raise_limit().saturating_sub(OTHER_FILES);
        let connections = u32::try_from(files).unwrap_or(u32::MAX).min(self.workers);
        let load = Load { workers: self.workers, steps: self.steps, step: step.unwrap_or_default(), connections };
        let progress = terminal::spinner(format!("{} workers train {} steps", self.workers, self.steps));
        let report = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(load.run())?;
        progress.finish_and_clear();
        if self.json {
            writeln!(terminal::out(), "{}", serde_json::to_string(&report)?)?;
        } else {
            write!(terminal::out(), "{report}")?;
        }
        Ok(())
    }
}
