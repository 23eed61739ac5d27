//! The comparison: fine-tunes one captioner by several objectives with equal budgets, on the built-in world, where fluency and
//! truth can be judged exactly, and says what came of it.
//!
//! ```text
//! arms.rs      what is compared
//! seed.rs      one seed: world, evaluators, teacher forcing, then every arm
//! summary.rs   all seeds: mean and spread, and whether the paper's claims hold -> summary.json
//! report.rs    the same as tables -> docs/results.md
//! pictures.rs  reward against grammatical share over steps -> docs/compare.png
//! ```

mod arms;
mod pictures;
mod report;
mod seed;
mod summary;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use demos::interrupted;

use seed::Seed;
use summary::Summary;

/// Compares objectives on the built-in world. What an interrupted comparison has finished is not done again.
#[derive(Parser)]
#[command(name = "compare", version)]
struct Compare {
    /// One comparison for each, each with a world, evaluators and a captioner of its own.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_name = "N,...")]
    seeds: Vec<u64>,
    /// The run file that evaluators and captioner are made with.
    #[arg(long, default_value = "configs/compare/base.yaml", value_name = "FILE")]
    base: PathBuf,
    /// The run file that all arms are variations of.
    #[arg(long, default_value = "configs/compare/tune.yaml", value_name = "FILE")]
    tune: PathBuf,
    /// Images of each world, over all splits.
    #[arg(long, default_value_t = 5000, value_name = "N")]
    images: u32,
    /// Where runs and summary.json go.
    #[arg(long, default_value = "runs/compare", value_name = "DIR")]
    out: PathBuf,
    /// Folder with the results.md whose section on the comparison is written anew, and for its pictures.
    #[arg(long, default_value = "docs", value_name = "DIR")]
    docs: PathBuf,
}

fn main() -> ExitCode {
    let compare = Compare::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.context("cannot start tokio").and_then(|runtime| {
        runtime.block_on(async {
            // Dropping the comparison ends its processes.
            tokio::select! {
                result = compare.run() => result,
                result = interrupted() => result,
            }
        })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Compare {
    async fn run(self) -> Result<()> {
        let mut results = Vec::new();
        for &number in &self.seeds {
            let seed = Seed::new(number, &self.out, &self.base, &self.tune)?;
            results.push(seed.run(self.images).await?);
        }
        let summary = Summary::new(&results);
        let path = self.out.join("summary.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&summary)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        pictures::draw(&self.docs, &summary)?;
        let section = report::section(&summary);
        report::write(&self.docs.join("results.md"), &section)?;
        println!("{section}\nwritten: {}, {}", path.display(), self.docs.join("results.md").display());
        Ok(())
    }
}
