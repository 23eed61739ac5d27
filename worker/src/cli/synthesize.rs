//! `worker synthesize`: writes the synthetic data set.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

/// Write the synthetic data set: images of simple scenes, captions and scene graphs.
///
/// Needs no other data. Prints the folder and the number of images of each split.
#[derive(clap::Args)]
#[command(after_help = "Example: worker synthesize --out world --images 5000 --seed 7")]
pub struct Synthesize {
    /// Folder for images/, dataset.json and scenes.json.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of images of all splits together.
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1_000_000))]
    images: u32,
    /// Seed of the data set: the same seed and number of images give the same data set.
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Also write positives/: generated images and captions of the training scenes, for contrastive
    /// stages with generated positives.
    #[arg(long)]
    positives: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Synthesize {
    /// Runs the command.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn run(self) -> Result<()> {
        // The positives are written first, because a folder with dataset.json counts as complete.
        if self.positives {
            let progress = cli_support::spinner("drawing positives");
            synthetic_data::write_generated_positives(&self.out, self.images as usize, self.seed)?;
            progress.finish_and_clear();
        }
        let bar = cli_support::progress_bar(self.images.into(), "images");
        let written = synthetic_data::write_dataset(&self.out, self.images as usize, self.seed, |images| {
            bar.set_position(images as u64);
        });
        let synthetic_data::SplitSizes { train, val, test } = written?;
        bar.finish_and_clear();
        if self.json {
            super::print(format_args!("{}", json!({ "folder": self.out, "train": train, "val": val, "test": test })))?;
        } else {
            super::print(format_args!("{}: {train} train, {val} val, {test} test images", self.out.display()))?;
        }
        Ok(())
    }
}
