//! The comparison: fine-tunes one captioner by several objectives with equal budgets, on the
//! synthetic data set, where grammar and truth of captions are known exactly.
//!
//! ```text
//! arms.rs      the arms: the ways to fine-tune that are compared
//! seed.rs      one seed: data set, evaluators, teacher forcing, then every arm
//! summary.rs   all seeds: means, deviations, and whether the paper's claims hold -> summary.json
//! report.rs    the same as tables -> docs/results.md
//! pictures.rs  reward and grammatical share over steps -> docs/objective-comparison.png
//! canvas.rs    the drawing area of the picture
//! ```

mod arms;
mod canvas;
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

/// Compare objectives on the synthetic data set.
///
/// Continues an interrupted comparison. Writes summary.json, and the section and picture of the
/// documents.
#[derive(Parser)]
#[command(name = "compare", version)]
struct Compare {
    /// Seeds. Each has its own data set, evaluators and captioner.
    #[arg(long, value_delimiter = ',', default_value = "1,2,3", value_name = "N,...")]
    seeds: Vec<u64>,
    /// The run file that trains evaluators and captioner.
    #[arg(long, default_value = "configs/objective-comparison/base.yaml", value_name = "FILE")]
    base: PathBuf,
    /// The run file that the arms vary.
    #[arg(long, default_value = "configs/objective-comparison/tune.yaml", value_name = "FILE")]
    tune: PathBuf,
    /// The number of images of each data set, over all splits.
    #[arg(long, default_value_t = 5000, value_name = "N")]
    images: u32,
    /// The folder for runs and summary.json.
    #[arg(long, default_value = "runs/compare", value_name = "DIR")]
    out: PathBuf,
    /// The folder with results.md, whose section on the comparison is rewritten, and for its
    /// picture.
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
