use std::path::PathBuf;

use serde_json::json;
use weights::ReleasedFolder;
use weights::folder::{self, Manifest, VisionTower};
use weights::write_safetensors;

use crate::files;

#[derive(clap::Args)]
#[command(after_help = "Example: worker import --from dico-ViTL14 --to models/dico-vit-l14")]
pub struct Import {
    /// The published folder: config.json and its weights.
    #[arg(long, value_name = "HF_DIR")]
    from: PathBuf,
    /// The model folder to make.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Import {
    pub fn run(self) -> Result<(), String> {
        let text = |error: weights::Error| error.to_string();
        let progress = cli_support::spinner("reading, translating and writing the weights");
        let released = ReleasedFolder::open(&self.from).map_err(text)?;
        let vocabulary = released.vocabulary().map_err(text)?;
        files::new_folder(&self.to, |folder| {
            let vision = released.vision_tensors().map_err(text)?;
            write_safetensors(&folder.join(folder::CAPTIONER), &released.captioner_tensors()).map_err(text)?;
            write_safetensors(&folder.join(folder::VISION), &vision).map_err(text)?;
            write_safetensors(&folder.join(folder::RELEASED), &released.unused_tensors()).map_err(text)?;
            let config = serde_json::to_vec_pretty(released.config()).map_err(|error| error.to_string())?;
            files::write(&folder.join(folder::CONFIG), &config)?;
            let tower = VisionTower {
                architecture: released.vision().clone(),
                path: folder::VISION.into(),
                sha256: None,
                lora: None,
                published_prefix: Some(released.vision_prefix().to_owned()),
            };
            Manifest::new(vocabulary, released.captioner().clone(), tower, None).write(folder).map_err(text)?;
            checkpoint_store::seal(folder).map_err(|error| error.to_string())
        })?;
        progress.finish_and_clear();
        let tensors = released.captioner_tensors().len();
        if self.json {
            super::print(format_args!("{}", json!({ "folder": self.to, "tensors": tensors })))?;
        } else {
            super::print(format_args!("{}: a captioner of {tensors} tensors", self.to.display()))?;
        }
        Ok(())
    }
}
