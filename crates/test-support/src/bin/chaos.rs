//! Chaos test: trains on this machine while processes are killed, suspended and restarted, and
//! records the cost.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use test_support::Workspace;
use test_support::chaos::{Chaos, Fault};

/// Cross-entropy steps of the run per minute of faults.
const STEPS_PER_MINUTE: u64 = 600;

/// Train with random faults and once without, and write the results to DIR/summary.json.
///
/// Fails if a sample was lost or repeated, or if workers ended with different parameters.
#[derive(Parser)]
#[command(name = "chaos", version)]
struct Arguments {
    /// Duration of the faults.
    #[arg(long, default_value_t = 3.0, value_name = "MINUTES")]
    minutes: f64,
    /// Maximal number of faults.
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true, value_name = "N")]
    faults: usize,
    /// Kinds of faults.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "kill,stop,leave,kill-coordinator,stop-coordinator",
        value_name = "KIND,..."
    )]
    kinds: Vec<Fault>,
    /// Number of workers.
    #[arg(long, default_value_t = 3, value_name = "N")]
    workers: u32,
    /// Seed of the random faults.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Skip the run without faults, whose scores are the comparison.
    #[arg(long)]
    no_quiet: bool,
    /// Folder for the runs, the logs of all processes and the summary.
    #[arg(long, default_value = "runs/chaos", value_name = "DIR")]
    out: PathBuf,
}

fn main() -> std::process::ExitCode {
    let Arguments { minutes, faults, kinds, workers, seed, no_quiet, out } = Arguments::parse();
    let steps = ((minutes * STEPS_PER_MINUTE as f64) as u64).max(30);
    let max_duration = Duration::from_secs_f64(minutes * 60.0);
    let chaos = Chaos { workers, fault_kinds: kinds, max_faults: faults, max_duration, seed, steps };
    // Removes only the output of an earlier chaos test.
    for folder in ["world", "chaos", "chaos.logs", "quiet", "quiet.logs"] {
        _ = std::fs::remove_dir_all(out.join(folder));
    }
    let workspace = Workspace::in_folder(&out, 300, &[]);
    let summary = chaos.run(&workspace, "chaos");
    let mut results = serde_json::to_value(&summary).expect("a summary can be serialized");
    if !no_quiet {
        results["scores_without_faults"] = chaos.run_without_faults(&workspace, "quiet");
    }
    results["settings"] = json!({ "minutes": minutes, "steps": steps, "workers": workers, "seed": seed });
    let text = serde_json::to_string_pretty(&results).expect("a summary can be serialized");
    std::fs::write(out.join("summary.json"), format!("{text}\n")).expect("the summary can be written");
    println!("{text}");
    if summary.samples_lost + summary.samples_repeated > 0 || summary.divergent_ranks > 0 {
        eprintln!(
            "chaos: error: samples were lost or repeated, or workers ended with different parameters: see the summary above"
        );
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}
