//! The data of the measured steps: synthetic images, and their features.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use config::{Data, Karpathy};
use dataset::Split;
use image_features::{Dtype, EncoderDescription, Manifest, RowFormat, Store, Writer};
use run_assets::FeatureStores;
use serde_json::json;

use crate::cli::bench::synthetic_images;
use crate::data::DataLoader;
use crate::feature_rows;
use crate::run_models::RunModels;

/// Number of images that are encoded at a time.
const ENCODING_BATCH: usize = 16;

/// Writes `count` training images and their annotations into a folder. Returns the settings of a
/// run file that name them.
///
/// # Errors
/// A file cannot be written.
pub fn write_images(folder: &Path, count: usize) -> Result<Data> {
    let paths = synthetic_images::write(folder, count)?;
    let image = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        json!({ "filename": name, "split": "train", "sentences": [{ "raw": "noise" }] })
    };
    let images: Vec<serde_json::Value> = paths.iter().map(image).collect();
    let annotations = folder.join("dataset.json");
    std::fs::write(&annotations, json!({ "images": images }).to_string())
        .with_context(|| annotations.display().to_string())?;
    let karpathy = Some(Karpathy { annotations, images: folder.to_owned() });
    Ok(Data { karpathy, ..Data::default() })
}

/// Writes a feature store of the `images` training images that `loader` decodes into a folder, and
/// opens it.
///
/// # Errors
/// An image cannot be decoded, or the store cannot be written.
pub fn store_features(models: &RunModels, loader: &DataLoader, images: usize, folder: &Path) -> Result<FeatureStores> {
    let vision = models.vision_config();
    let embedding_width = models.primary_clip.config().embedding;
    let shape = [vision.sequence_length(), vision.width(), embedding_width].map(|size| size as u64);
    // Only this function opens the store, so nothing compares names and descriptions.
    let encoder = |image_size: usize| EncoderDescription {
        weights: "random".into(),
        sha256: String::new(),
        image_size: image_size as u32,
        computation: String::new(),
    };
    let encoders = (encoder(vision.image_size), vec![encoder(models.primary_clip.config().image_size)]);
    let rows = RowFormat { shape, dtype: Dtype::F16 };
    let (split, image_count_and_names, preprocessing) = (Split::Train, (images as u64, String::new()), String::new());
    let manifest = Manifest::new(split.name().to_owned(), image_count_and_names, preprocessing, encoders, rows);
    let mut writer = Writer::open(folder, manifest.clone())?;
    let ranges = (0..images).step_by(ENCODING_BATCH).map(|begin| begin..images.min(begin + ENCODING_BATCH));
    for (range, batch) in loader.load_ranges(split, ranges) {
        writer.append(&feature_rows::encode(models, &manifest, &batch?, range))?;
    }
    Ok(FeatureStores::from_iter([(split, Store::open(folder, &manifest)?)]))
}
