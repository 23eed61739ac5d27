//! `coordinator validate`: checks a run file without starting anything.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use runfile::{RunFile, Stage};

/// Check a run file, and that the data it names exist.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  coordinator validate --config configs/demo.yaml")]
pub struct Validate {
    /// The run file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Validate {
    /// Prints one line if all is well.
    pub fn run(self) -> anyhow::Result<()> {
        let file = RunFile::load(&self.config)?;
        let config = self.config.display();
        let data = &file.data;
        let annotations = data.annotations.display();
        ensure!(data.annotations.is_file(), "{config}: data.annotations: there is no file {annotations}");
        ensure!(data.images.is_dir(), "{config}: data.images: there is no folder {}", data.images.display());
        if let Some(scenes) = &data.scenes {
            ensure!(scenes.is_file(), "{config}: data.scenes: there is no file {}", scenes.display());
        }
        println!("OK: {}: {}", file.name, summary(&file));
        Ok(())
    }
}

fn summary(file: &RunFile) -> String {
    let stage = |stage: &Stage| {
        let Stage { name, objective, steps, batch, .. } = stage;
        format!("{name} ({}, {steps} steps of {batch})", objective.name())
    };
    let stages: Vec<String> = file.stages.iter().map(stage).collect();
    format!("{}; {} to {} workers", stages.join(", "), file.workers.min, file.workers.max)
}
