//! `worker export`: writes a captioner as a folder for transformers.

use std::path::PathBuf;

use anyhow::Result;
use run_assets::open_folder;
use serde_json::json;
use weights::write_safetensors;

use super::caption::warn_if_untrained;
use crate::trainer::checkpoint_metadata;
use crate::{atomic_files, export};

/// Export the captioner of a checkpoint as a folder that transformers loads.
///
/// Needs a checkpoint or a model folder. Prints the folder and the number of tensors.
#[derive(clap::Args)]
#[command(after_help = "Example: worker export --from runs/coco/checkpoints/1-dico-00250000 --to dico-mine")]
pub struct Export {
    /// Checkpoint, or model folder of `worker import`.
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Folder to create, with weights, tokenizer and code for `AutoModel.from_pretrained`.
    #[arg(long, value_name = "HF_DIR")]
    to: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Export {
    /// Runs the command.
    ///
    /// # Errors
    /// The checkpoint cannot be read, or the folder exists or cannot be written.
    pub fn run(self) -> Result<()> {
        let progress = cli_support::spinner("reading, converting and writing the weights");
        let folder = open_folder(&self.from)?;
        let metadata = checkpoint_metadata(&self.from);
        let (vision, imported_files) = (folder.vision()?, folder.imported_files()?);
        let (config, tensors) = folder.to_upstream(&vision, imported_files.as_ref())?;
        let name = self.to.file_name().unwrap_or_default().to_string_lossy();
        atomic_files::create_folder(&self.to, |to| {
            atomic_files::write_synced(&to.join("config.json"), &serde_json::to_vec_pretty(&config)?)?;
            for (file, content) in export::additional_files(&folder, &name, metadata.as_ref()) {
                atomic_files::write_synced(&to.join(file), &content)?;
            }
            write_safetensors(&to.join("model.safetensors"), &tensors)?;
            Ok(())
        })?;
        progress.finish_and_clear();
        warn_if_untrained(&folder, metadata.as_ref());
        if self.json {
            super::print(format_args!("{}", json!({ "folder": self.to, "tensors": tensors.len() })))?;
        } else {
            super::print(format_args!("{}: {} tensors", self.to.display(), tensors.len()))?;
        }
        Ok(())
    }
}
