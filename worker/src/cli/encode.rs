use std::path::PathBuf;
use std::sync::Arc;

use config::RunFile;
use dataset::{DataSet, Split};
use feature_store::{Dtype, Manifest, Writer};
use serde_json::json;
use tch::{Device, Tensor};

use super::device::Compute;
use crate::data::{Batch, Loader, Source, kind};
use crate::models::{self, Models, WeightSources};
use crate::{feature_source, tensors};

#[derive(clap::Args)]
#[command(after_help = "Example: worker encode --config configs/coco-vit-l14.yaml --split train --out features\n\n\
                        The store is written to OUT/SPLIT; set data.features to OUT to train from it. An interrupted \
                        run is continued by the same command.")]
pub struct Encode {
    /// The run file: names the data and the towers.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which split: train, val or test.
    #[arg(long, value_name = "SPLIT")]
    split: Split,
    /// Folder of the stores; this one goes to OUT/SPLIT.
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Type of the numbers: f32, f16 or bf16.
    #[arg(long, default_value = "f16", value_parser = dtype, value_name = "TYPE")]
    dtype: Dtype,
    /// Images encoded at once.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    batch: u16,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    compute: Compute,
}

impl Encode {
    pub fn run(self) -> Result<(), String> {
        let device = self.compute.prepare()?;
        let run = RunFile::load(&self.config).map_err(|error| error.to_string())?;
        let data = Arc::new(DataSet::load(&run.data).map_err(|error| error.to_string())?);
        let captions = data.split(Split::Train).iter().flat_map(|item| &item.captions).map(String::as_str);
        let sources = WeightSources::open(&run, models::vocabulary(&run, captions))?;
        let models = sources.models(device)?;
        let manifest = feature_source::manifest(&data, self.split, &sources, &models, self.dtype)?;
        let folder = feature_source::path(&self.out, self.split);
        let mut writer = Writer::open(&folder, manifest.clone()).map_err(|error| error.to_string())?;
        let skip_corrupt = run.data.skip_corrupt;
        let source = Source { data, sizes: models.sizes(), stores: None, skip_corrupt };
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let skipped = self.encode(&models, &manifest, &Loader::new(source, threads), &mut writer)?;
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

    /// Encodes what is missing. Returns how many images could not be decoded.
    fn encode(
        &self,
        models: &Models,
        manifest: &Manifest,
        loader: &Loader,
        writer: &mut Writer,
    ) -> Result<u64, String> {
        let images = manifest.images as usize;
        // Rounding depends on which images are computed together: an incomplete batch is computed
        // again, so that an interrupted store is bitwise equal to an uninterrupted one.
        let whole =
            writer.rows() - if writer.rows() < manifest.images { writer.rows() % u64::from(self.batch) } else { 0 };
        writer.keep(whole).map_err(|error| error.to_string())?;
        let bar = cli_support::bar(manifest.images, "images");
        bar.set_position(writer.rows());
        bar.reset_eta();
        let first = writer.rows() as usize;
        let batch = usize::from(self.batch);
        let ranges = (first..images).step_by(batch).map(|from| from..images.min(from + batch));
        let mut skipped = 0;
        for (range, batch) in loader.ranges(self.split, ranges) {
            let batch = batch?;
            skipped += batch.skipped;
            writer.append(&rows(models, manifest, &batch, range)).map_err(|error| error.to_string())?;
            bar.set_position(writer.rows());
        }
        bar.finish();
        Ok(skipped)
    }
}

/// The rows of images `range`; of those that could not be decoded they are all zero, which no embedding is.
fn rows(models: &Models, manifest: &Manifest, batch: &Batch, range: std::ops::Range<usize>) -> Vec<u8> {
    let length = manifest.row_bytes();
    let mut rows = vec![0; length * range.len()];
    let count = batch.samples.len();
    if count == 0 {
        return rows;
    }
    let hidden = models.hidden(batch, 0..count);
    let embeddings = (0..=models.further.len()).map(|number| models.embeddings(batch, 0..count, &hidden, number));
    let parts: Vec<Tensor> = std::iter::once(hidden.flatten(1, -1)).chain(embeddings).collect();
    let numbers = Tensor::cat(&parts, 1).to_kind(kind(manifest.dtype));
    let bytes = tensors::bytes(&numbers.to_device(Device::Cpu));
    for (sample, row) in batch.samples.iter().zip(bytes.chunks(length)) {
        rows[(sample.image - range.start) * length..][..length].copy_from_slice(row);
    }
    rows
}

fn dtype(text: &str) -> Result<Dtype, String> {
    match text {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        "bf16" => Ok(Dtype::Bf16),
        _ => Err("expected f32, f16 or bf16".to_owned()),
    }
}
