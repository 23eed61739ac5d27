//! Chaos test: trains on this machine while processes are killed, suspended and restarted, and
//! records the cost.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use test_support::Workspace;
use test_support::chaos::{Chaos, Fault};

/// Cross-entropy steps per minute of the run.
const STEPS_A_MINUTE: u64 = 600;

/// Runs a coordinator and workers under random faults, once more without, and writes the account to OUT/summary.json.
///
/// Fails if a sample was lost or repeated, or if ranks ended with different parameters.
#[derive(Parser)]
#[command(name = "chaos", version)]
struct Arguments {
    /// For how long there are faults.
    #[arg(long, default_value_t = 3.0, value_name = "MINUTES")]
    minutes: f64,
    /// At most so many faults.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true, value_name = "N")]
    faults: usize,
    /// Which faults.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kill,stop,leave,kill-coordinator,stop-coordinator",
        value_name = "KIND,..."
    )]
    kinds: Vec<Fault>,
    /// How many workers.
    #[arg(long, default_value_t = 3, value_name = "N")]
    workers: u32,
    /// What is random follows from it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Leave out the run without faults.
    #[arg(long)]
    no_quiet: bool,
    /// Where the runs, the logs of all processes and the summary are written.
    #[arg(long, default_value = "runs/chaos", value_name = "DIR")]
    out: PathBuf,
}

fn main() -> std::process::ExitCode {
    let Arguments { minutes, faults, kinds, workers, seed, no_quiet, out } = Arguments::parse();
    let steps = ((minutes * STEPS_A_MINUTE as f64) as u64).max(30);
    let limit = Duration::from_secs_f64(minutes * 60.0);
    let chaos = Chaos { workers, kinds, most: faults, limit, seed, steps };
    // Removes the output of an earlier run, and nothing else.
    for left in ["world", "chaos", "chaos.logs", "quiet", "quiet.logs"] {
        _ = std::fs::remove_dir_all(out.join(left));
    }
    let workspace = Workspace::kept(&out, 300, &[]);
    let summary = chaos.run(&workspace, "chaos");
    let mut account = serde_json::to_value(&summary).expect("a summary is plain data");
    if !no_quiet {
        account["scores_without_faults"] = chaos.quiet(&workspace, "quiet");
    }
    account["settings"] = json!({ "minutes": minutes, "steps": steps, "workers": workers, "seed": seed });
    let text = serde_json::to_string_pretty(&account).expect("a summary is plain data");
    std::fs::write(out.join("summary.json"), format!("{text}\n")).expect("the summary can be written");
    println!("{text}");
    if summary.samples_lost + summary.samples_repeated > 0 || summary.divergent_ranks > 0 {
        eprintln!("chaos: error: samples were lost or repeated, or ranks differ; see above");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
