use std::path::PathBuf;

use serde_json::json;
use weights::write_safetensors;

use super::caption::warn_if_untrained;
use crate::models::open_folder;
use crate::trainer::stamp;
use crate::{export, files};

#[derive(clap::Args)]
#[command(after_help = "Example: worker export --from runs/coco/checkpoints/1-dico-00250000 --to dico-mine")]
pub struct Export {
    /// A checkpoint, or a folder that `worker import` made.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The Hugging Face folder to make: weights, tokenizer and code, for `AutoModel.from_pretrained`.
    #[arg(long, value_name = "HF_DIR")]
    to: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Export {
    pub fn run(self) -> Result<(), String> {
        let text = |error: weights::Error| error.to_string();
        let progress = cli_support::spinner("reading, translating and writing the weights");
        let folder = open_folder(&self.from)?;
        let stamp = stamp(&self.from);
        let (vision, kept) = (folder.vision().map_err(text)?, folder.released().map_err(text)?);
        let (config, tensors) = folder.to_released(&vision, kept.as_ref()).map_err(text)?;
        let name = self.to.file_name().unwrap_or_default().to_string_lossy();
        files::new_folder(&self.to, |to| {
            let config = serde_json::to_vec_pretty(&config).map_err(|error| error.to_string())?;
            files::write(&to.join("config.json"), &config)?;
            for (file, content) in export::files(&folder, &name, stamp.as_ref()) {
                files::write(&to.join(file), &content)?;
            }
            write_safetensors(&to.join("model.safetensors"), &tensors).map_err(text)
        })?;
        progress.finish_and_clear();
        warn_if_untrained(&folder, stamp.as_ref());
        if self.json {
            super::print(format_args!("{}", json!({ "folder": self.to, "tensors": tensors.len() })))?;
        } else {
            super::print(format_args!("{}: {} tensors", self.to.display(), tensors.len()))?;
        }
        Ok(())
    }
}
