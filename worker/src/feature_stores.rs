//! The feature stores of a run: which stores its models need, and from which encoders and images
//! their features must have been computed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use config::RunFile;
use dataset::{DataSet, Split};
use image_features::{Dtype, Manifest, RowFormat, Store};

use crate::run_models::{RunModels, WeightSources};

/// The manifest that the feature store of `split` has to have.
///
/// # Errors
/// An encoder is not frozen, so its outputs change during the run.
pub fn expected_manifest(
    data: &DataSet,
    split: Split,
    weight_sources: &WeightSources,
    models: &RunModels,
    dtype: Dtype,
) -> Result<Manifest> {
    let encoders = weight_sources.frozen_encoders().context(
        "features can be stored only of frozen vision encoders: set evaluator.weights, and captioner.vision_encoder if \
         it differs",
    )?;
    let vision = models.vision_config();
    let shape = [vision.sequence_length(), vision.width(), models.embedding_width()].map(|size| size as u64);
    let images = (data.split(split).len() as u64, data.names_sha256(split));
    Ok(Manifest::new(
        split.name().to_owned(),
        images,
        data.preprocessing().description(),
        encoders,
        RowFormat { shape, dtype },
    ))
}

/// Opens the feature stores that `run` names, for the training and the validation split; none if it
/// names none.
///
/// # Errors
/// A store is missing or incomplete, or was computed from other encoders or images.
pub fn open_stores(
    run: &RunFile,
    data: &DataSet,
    weight_sources: &WeightSources,
    models: &RunModels,
) -> Result<Option<[Store; 2]>> {
    let Some(folder) = &run.data.features else { return Ok(None) };
    let open = |split: Split| {
        let manifest = expected_manifest(data, split, weight_sources, models, Dtype::F32)?;
        anyhow::Ok(Store::open(&store_path(folder, split), &manifest)?)
    };
    Ok(Some([open(Split::Train)?, open(Split::Validation)?]))
}

/// The path of the feature store of `split` in the folder that a run file names.
#[must_use]
pub fn store_path(folder: &Path, split: Split) -> PathBuf {
    folder.join(split.name())
}
