//! Load tests: a real coordinator in a separate process, and thousands of simulated workers in this
//! one.
//!
//! ```text
//!   load            runs a load test: starts all of the following
//!   coordinator     the coordinator's process: its run file, its journal
//!   usage           CPU and memory of a process
//!   worker          a simulated worker: the real protocol, simulated computing
//!   messages        the messages of simulated workers: reports of the same size as real ones
//!   latency_probe   sends requests to the coordinator continuously
//!   recorder        records the measurements of workers and latency probe
//!   report          computes the results from the measurements
//! ```

mod coordinator;
mod latency_probe;
mod load;
mod messages;
mod recorder;
mod report;
mod usage;
mod worker;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use clap::Parser;

use load::LoadTest;

/// The number of open files that this process needs in addition to its workers' connections.
const RESERVED_FILES: u64 = 100;

/// Measures a coordinator under the load of many workers.
///
/// Starts the coordinator that was built beside this program, in a temporary folder, and trains a
/// run with simulated workers. Each one is a task of this process that speaks the real protocol and
/// only waits instead of computing. All workers wait for each other at the end of each step, as in
/// an all-reduce, so all reports of a step arrive at once.
///
/// The report has:
///
/// - join storm: all workers start at the same moment, and at most 16 at a time join. The times
///   from the start until each worker has joined, until the last one has received the directive
///   `Rendezvous`, and until the first steps are granted.
/// - fan-out of a directive: the time from the first worker's receipt of a `Train` directive to the
///   last one's; and from the first worker's report of the step that triggered the directive to the
///   last one's receipt. The last worker's report triggers it, so this is an upper bound of the
///   time since then.
/// - heartbeat: heartbeats are not answered, so a latency probe sends a request 20 times per second
///   over its own connection, which passes through the coordinator's queue as heartbeats do. The
///   round trip of a request is an upper bound for a heartbeat. It is counted from the time at
///   which the request was due.
/// - CPU seconds and peak memory of the coordinator, CPU seconds of this process. Both share the
///   machine.
#[derive(Debug, Parser)]
#[command(name = "load-generator", version, after_help = "Example:\n  load-generator --workers 10000 --steps 200")]
struct Arguments {
    /// The number of simulated workers.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=i64::from(config::MAX_WORKERS)))]
    workers: u32,
    /// The number of steps. There is a checkpoint and an evaluation in the middle and at the end.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// The minimal duration of a step in seconds; with 0, workers report as fast as they can.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0)]
    step_seconds: f64,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

impl Arguments {
    /// Runs the load test and prints its results.
    fn run(self) -> anyhow::Result<()> {
        let step = Duration::try_from_secs_f64(self.step_seconds);
        ensure!(step.is_ok(), "--step-seconds {}: must be a number of seconds, 0 or more", self.step_seconds);
        let files = cli_support::raise_open_files_limit().saturating_sub(RESERVED_FILES);
        let connections = u32::try_from(files).unwrap_or(u32::MAX).min(self.workers);
        let load =
            LoadTest { workers: self.workers, steps: self.steps, step_duration: step.unwrap_or_default(), connections };
        let progress = cli_support::spinner(format!("{} workers train {} steps", self.workers, self.steps));
        let report = tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(load.run())?;
        progress.finish_and_clear();
        if self.json {
            writeln!(cli_support::stdout(), "{}", serde_json::to_string(&report)?)?;
        } else {
            write!(cli_support::stdout(), "{report}")?;
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli_support::print_error(format_args!("load-generator: error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
