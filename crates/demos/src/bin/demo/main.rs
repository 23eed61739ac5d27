//! The demo: draws the built-in world, starts a coordinator and two workers on this machine, shows their progress, and at
//! the end says what DiCO changed.
//!
//! ```text
//! results.rs   the coordinator's journal -> summary.json and the table
//! curves.rs    the same journal -> curves.png
//! ```

mod curves;
mod results;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use config::RunFile;
use demos::cluster::{self, Cluster};
use demos::interrupted;
use demos::journal::Journal;
use demos::progress::Progress;

/// Trains an evaluator and a captioner from scratch and fine-tunes the captioner with DiCO, all on this machine.
#[derive(Parser)]
#[command(name = "demo", version)]
struct Demo {
    /// The run file.
    #[arg(long, default_value = "configs/demo.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Images of the built-in world, over all splits.
    #[arg(long, default_value_t = 5000, value_name = "N")]
    images: u32,
}

fn main() -> std::process::ExitCode {
    let demo = Demo::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot start tokio").and_then(|runtime| {
        runtime.block_on(async {
            // Dropping the run ends its processes.
            tokio::select! {
                result = demo.run() => result,
                result = interrupted() => result,
            }
        })
    });
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

impl Demo {
    async fn run(self) -> Result<()> {
        let started = Instant::now();
        let run = RunFile::load(&self.config)?;
        let karpathy = run.data.karpathy.as_ref().context("the demo's data are in Karpathy's format")?;
        let world = karpathy.annotations.parent().context("data.karpathy.annotations has no folder")?;
        cluster::synthesize(world, self.images, run.seed, &[])?;
        // A demo starts from scratch; the synthetic data set, which is the same every time, stays.
        for folder in ["checkpoints", "coordinator"] {
            let folder = run.output.join(folder);
            if folder.exists() {
                std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        let cluster = Cluster::start(&self.config, &run)?;
        let parameters_sha256 = cluster.watch(Progress::new(&run)).await?;
        let journal = Journal::open(&run.output.join("coordinator/journal.sqlite"))?;
        let summary = results::Summary::new(&run, &journal, started.elapsed().as_secs_f64(), parameters_sha256)?;
        let path = run.output.join("summary.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&summary)?).context("cannot write summary.json")?;
        let picture = run.output.join("curves.png");
        curves::draw(&picture, &run, &journal)?;
        println!("{summary}\nwritten: {}, {}", path.display(), picture.display());
        Ok(())
    }
}
