//! `worker import`: converts a published captioner to a model folder.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;
use weights::UpstreamFolder;
use weights::model_folder::{self, Manifest, VisionEncoder};
use weights::write_safetensors;

use crate::atomic_files;

/// Import a published captioner from its Hugging Face folder as a model folder.
///
/// The other commands, and `captioner.weights` of a run file, read model folders. Prints the folder
/// and the number of the captioner's tensors.
#[derive(clap::Args)]
#[command(after_help = "Example: worker import --from dico-ViTL14 --to models/dico-vit-l14")]
pub struct Import {
    /// Published folder, with config.json and weights.
    #[arg(long, value_name = "HF_DIR")]
    from: PathBuf,
    /// Model folder to create.
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl Import {
    /// Runs the command.
    ///
    /// # Errors
    /// The published folder cannot be read, or the model folder exists or cannot be written.
    pub fn run(self) -> Result<()> {
        let progress = cli_support::spinner("reading, converting and writing the weights");
        let upstream = UpstreamFolder::open(&self.from)?;
        let vocabulary = upstream.vocabulary()?;
        atomic_files::create_folder(&self.to, |folder| {
            let vision = upstream.vision_tensors()?;
            write_safetensors(&folder.join(model_folder::CAPTIONER_FILE), &upstream.captioner_tensors())?;
            write_safetensors(&folder.join(model_folder::VISION_FILE), &vision)?;
            write_safetensors(&folder.join(model_folder::UNUSED_TENSORS_FILE), &upstream.unused_tensors())?;
            atomic_files::write_synced(
                &folder.join(model_folder::UPSTREAM_CONFIG_FILE),
                &serde_json::to_vec_pretty(upstream.config())?,
            )?;
            let vision_encoder = VisionEncoder {
                config: upstream.vision().clone(),
                path: model_folder::VISION_FILE.into(),
                sha256: None,
                lora: None,
                upstream_prefix: Some(upstream.vision_prefix().to_owned()),
            };
            Manifest::new(vocabulary, upstream.captioner().clone(), vision_encoder, None).write(folder)?;
            checkpoint_store::seal_folder(folder)?;
            Ok(())
        })?;
        progress.finish_and_clear();
        let tensors = upstream.captioner_tensors().len();
        if self.json {
            super::print(format_args!("{}", json!({ "folder": self.to, "tensors": tensors })))?;
        } else {
            super::print(format_args!("{}: a captioner of {tensors} tensors", self.to.display()))?;
        }
        Ok(())
    }
}
