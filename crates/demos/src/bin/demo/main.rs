//! The demo: synthesizes a data set, trains with a coordinator and two workers on this machine,
//! shows their progress, and prints a table of the scores after each stage.

mod summary;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use config::RunFile;
use demos::cluster::{self, Cluster};
use demos::interrupted;
use demos::progress::Progress;
use journal::ReadOnlyJournal;

/// Train an evaluator and a captioner from scratch and fine-tune the captioner with DiCO, on this
/// machine.
///
/// Prints a table of scores and sample captions. Writes summary.json and report.html to the run's
/// output.
#[derive(Parser)]
#[command(name = "demo", version)]
struct Demo {
    /// The run file.
    #[arg(long, default_value = "configs/demo.yaml", value_name = "FILE")]
    config: PathBuf,
    /// The number of images of the synthetic data set, over all splits.
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
        let data_set = karpathy.annotations.parent().context("data.karpathy.annotations has no folder")?;
        cluster::synthesize(data_set, self.images, run.seed, &[])?;
        // A demo starts from scratch; the synthetic data set, which is the same every time, stays.
        for folder in ["checkpoints", "coordinator"] {
            let folder = run.output.join(folder);
            if folder.exists() {
                std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
            }
        }
        let cluster = Cluster::start(&self.config, &run)?;
        let parameters_sha256 = cluster.watch(Progress::new(&run)).await?;
        let journal = ReadOnlyJournal::open(&run.journal_folder())?;
        let summary = summary::Summary::new(&run, &journal, started.elapsed().as_secs_f64(), parameters_sha256)?;
        let path = run.output.join("summary.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&summary)?).context("cannot write summary.json")?;
        let report = run.output.join("report.html");
        write_report(&self.config, &report)?;
        println!("{summary}\nwritten: {}, {}", path.display(), report.display());
        Ok(())
    }
}

/// Runs `coordinator report`: curves and captions of all stages on one page.
fn write_report(config: &Path, report: &Path) -> Result<()> {
    let mut command = local_cluster::command("coordinator")?;
    let status =
        command.arg("report").arg("--config").arg(config).arg("--out").arg(report).stdout(Stdio::null()).status();
    ensure!(status.context("cannot run coordinator report")?.success(), "coordinator report failed");
    Ok(())
}
