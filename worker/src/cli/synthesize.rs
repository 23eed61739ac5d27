use std::path::PathBuf;

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
}

impl Synthesize {
    pub fn run(self) -> Result<(), String> {
        let summary = world::synthesize(&self.out, self.images as usize, self.seed, |_| {});
        let summary = summary.map_err(|error| error.to_string())?;
        if self.positives {
            let written = world::synthesize_positives(&self.out, self.images as usize, self.seed);
            written.map_err(|error| error.to_string())?;
        }
        println!("{}: {} train, {} val, {} test images", self.out.display(), summary.train, summary.val, summary.test);
        Ok(())
    }
}
