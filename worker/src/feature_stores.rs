//! The feature stores of a run: opens them, and checks that they were computed from the run's
//! encoders and images.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use config::RunFile;
use dataset::{DataSet, Split};
use image_features::{Dtype, Manifest, RowFormat, Store};

use crate::run_models::{RunModels, WeightSources};

/// The manifest that the feature store of `split` has to have.
///
/// # Errors
/// The run trains an encoder, so its outputs change, or initializes one from the seed.
pub fn expected_manifest(
    data: &DataSet,
    split: Split,
    weight_sources: &WeightSources,
    models: &RunModels,
    dtype: Dtype,
) -> Result<Manifest> {
    let encoders = weight_sources.frozen_encoders().context(
        "features can be stored only of frozen vision encoders: set evaluator.weights, train no evaluator in a \
         contrastive stage, and set captioner.vision_encoder if it differs",
    )?;
    let vision = models.vision_config();
    // Number and width of an image's hidden states; width of all evaluators' embeddings together.
    let shape = [vision.sequence_length(), vision.width(), models.embedding_width()].map(|size| size as u64);
    let image_count_and_names = (data.split(split).len() as u64, data.names_sha256(split));
    Ok(Manifest::new(
        split.name().to_owned(),
        image_count_and_names,
        data.preprocessing().description(),
        encoders,
        RowFormat { shape, dtype },
    ))
}

/// Opens the feature stores that `run` names, for the training and the validation split; none if it
/// names none.
///
/// # Errors
/// A store is missing or incomplete, or was computed from other encoders or images, or with other
/// preprocessing.
pub fn open_stores(
    run: &RunFile,
    data: &DataSet,
    weight_sources: &WeightSources,
    models: &RunModels,
) -> Result<Option<[Store; 2]>> {
    let Some(folder) = &run.data.features else { return Ok(None) };
    let open = |split: Split| {
        // A store may have any number type: `Store::open` does not compare it.
        let manifest = expected_manifest(data, split, weight_sources, models, Dtype::F32)?;
        anyhow::Ok(Store::open(&store_path(folder, split), &manifest)?)
    };
    Ok(Some([open(Split::Train)?, open(Split::Validation)?]))
}

/// The path of the feature store of `split`; `folder` is `data.features` of the run file.
#[must_use]
pub fn store_path(folder: &Path, split: Split) -> PathBuf {
    folder.join(split.name())
}
