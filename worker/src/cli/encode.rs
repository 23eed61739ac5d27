//! `worker encode`: writes feature stores.

use std::path::PathBuf;

use anyhow::{Result, bail};
use config::RunFile;
use dataset::Split;
use image_features::{Dtype, Manifest, Writer};
use run_assets::{RunAssets, expected_manifest, store_path};
use serde_json::json;

use super::device_options::DeviceOptions;
use crate::data::{BatchSource, DataLoader};
use crate::feature_rows;
use crate::run_models::RunModels;

/// Store the outputs of the frozen vision encoders for a split, so that training can skip them.
///
/// Needs the run file with its data and weights. Prints the folder of the store, the number of
/// images and the bytes per image.
#[derive(clap::Args)]
#[command(after_help = "Example: worker encode --config configs/coco-vit-l14.yaml --split train --out features\n\n\
                        The store is written to OUT/SPLIT; set data.features to OUT to train from it. After an \
                        interruption, the same command continues.")]
pub struct Encode {
    /// Run file, which names the data and the vision encoders.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Split to encode: train, val or test.
    #[arg(long, value_name = "SPLIT")]
    split: Split,
    /// Folder for the stores of all splits; the store of this split is OUT/SPLIT.
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Type of the stored values: f32, f16 or bf16.
    #[arg(long, default_value = "f16", value_parser = parse_dtype, value_name = "TYPE")]
    dtype: Dtype,
    /// Images per batch.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceOptions,
}

impl Encode {
    /// Runs the command.
    ///
    /// # Errors
    /// Data or weights cannot be read, or the store cannot be written.
    pub fn run(self) -> Result<()> {
        let device = self.device.initialize()?;
        let run = RunFile::load(&self.config)?;
        let RunAssets { data, weights, feature_stores, .. } = RunAssets::for_encoding(&run)?;
        let manifest = expected_manifest(&data, self.split, &weights, self.dtype)?;
        let models = RunModels::build(&run, &weights, device)?;
        let folder = store_path(&self.out, self.split);
        let mut writer = Writer::open(&folder, manifest.clone())?;
        let skip_corrupt = run.data.skip_corrupt;
        let source = BatchSource { data, sizes: models.image_sizes(), feature_stores, skip_corrupt };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let skipped = self.encode(&models, &manifest, &DataLoader::new(source, threads), &mut writer)?;
        let (images, bytes) = (manifest.images, manifest.row_bytes());
        if self.json {
            super::print(format_args!(
                "{}",
                json!({ "folder": folder, "images": images, "bytes_per_image": bytes, "left_out": skipped })
            ))?;
            return Ok(());
        }
        let left_out =
            if skipped > 0 { format!("; {skipped} could not be decoded and will be left out") } else { String::new() };
        super::print(format_args!("{}: {images} images, {bytes} bytes each{left_out}", folder.display()))?;
        Ok(())
    }

    /// Encodes the images that the store lacks. Returns the number of images that could not be
    /// decoded.
    fn encode(&self, models: &RunModels, manifest: &Manifest, loader: &DataLoader, writer: &mut Writer) -> Result<u64> {
        let images = manifest.images as usize;
        // Rounding depends on which images are in a batch. An incomplete batch is computed again,
        // so that an interrupted store is bitwise equal to an uninterrupted one.
        let complete_rows =
            writer.rows() - if writer.rows() < manifest.images { writer.rows() % u64::from(self.batch) } else { 0 };
        writer.truncate(complete_rows)?;
        let bar = cli_support::progress_bar(manifest.images, "images");
        bar.set_position(writer.rows());
        bar.reset_eta();
        let first = writer.rows() as usize;
        let batch = usize::from(self.batch);
        let ranges = (first..images).step_by(batch).map(|begin| begin..images.min(begin + batch));
        let mut skipped = 0;
        for (range, batch) in loader.load_ranges(self.split, ranges) {
            let batch = batch?;
            skipped += batch.skipped;
            writer.append(&feature_rows::encode(models, manifest, &batch, range))?;
            bar.set_position(writer.rows());
        }
        bar.finish();
        Ok(skipped)
    }
}

fn parse_dtype(text: &str) -> Result<Dtype> {
    match text {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::Bf16),
        _ => bail!("expected f32, f16 or bf16"),
    }
}
