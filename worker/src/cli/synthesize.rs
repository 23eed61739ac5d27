use std::path::PathBuf;

use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = "Example: worker synthesize --out world --images 5000 --seed 7")]
pub struct Synthesize {
    /// Folder to write images/, dataset.json and scenes.json to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Images to draw, over all splits.
    #[arg(long, default_value_t = 5000, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1_000_000))]
    images: u32,
    /// Everything follows from it.
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Also write positives/: other drawings and captions of the training scenes, for contrastive stages that weigh them in.
    #[arg(long)]
    positives: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Synthesize {
    pub fn run(self) -> Result<(), String> {
        let text = |error: synthetic_data::Error| error.to_string();
        // Before the rest: a folder with a dataset.json is complete.
        if self.positives {
            let progress = cli_support::spinner("drawing positives");
            synthetic_data::synthesize_positives(&self.out, self.images as usize, self.seed).map_err(text)?;
            progress.finish_and_clear();
        }
        let bar = cli_support::bar(self.images.into(), "images");
        let drawn = synthetic_data::synthesize(&self.out, self.images as usize, self.seed, |images| {
            bar.set_position(images as u64)
        });
        let synthetic_data::Summary { train, val, test } = drawn.map_err(text)?;
        bar.finish_and_clear();
        if self.json {
            super::print(format_args!("{}", json!({ "folder": self.out, "train": train, "val": val, "test": test })))?;
        } else {
            super::print(format_args!("{}: {train} train, {val} val, {test} test images", self.out.display()))?;
        }
        Ok(())
    }
}
