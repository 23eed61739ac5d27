//! Feature stores: which stores a run's models need, and from which encoders and images they must
//! have been computed.

use std::path::Path;

use config::RunFile;
use dataset::{DataSet, Split};
use feature_store::{Dtype, Manifest, Rows, Store, Tower};

use crate::models::{Models, WeightSources};

/// The manifest that the store of `split` has to have.
///
/// # Errors
/// An encoder is not frozen, so its outputs change.
pub fn manifest(
    data: &DataSet,
    split: Split,
    sources: &WeightSources,
    models: &Models,
    dtype: Dtype,
) -> Result<Manifest, String> {
    let towers: (Tower, Vec<Tower>) = sources.towers().ok_or(
        "features can only be stored of frozen towers: give evaluator.weights, and captioner.vision_encoder if it differs",
    )?;
    let seen = models.seen();
    let shape = [seen.tokens(), seen.width(), models.embedding_numbers()].map(|size| size as u64);
    let images = (data.split(split).len() as u64, data.names_sha256(split));
    Ok(Manifest::new(
        split.name().to_owned(),
        images,
        data.preprocessing().description(),
        towers,
        Rows { shape, dtype },
    ))
}

/// Opens the stores that `run` names, for the training and the validation split; none if it names
/// none.
///
/// # Errors
/// A store is missing or incomplete, or was computed from something else.
pub fn stores(
    run: &RunFile,
    data: &DataSet,
    sources: &WeightSources,
    models: &Models,
) -> Result<Option<[Store; 2]>, String> {
    let Some(folder) = &run.data.features else { return Ok(None) };
    let open = |split: Split| {
        let wanted = manifest(data, split, sources, models, Dtype::F32)?;
        Store::open(&path(folder, split), &wanted).map_err(|error| error.to_string())
    };
    Ok(Some([open(Split::Train)?, open(Split::Validation)?]))
}

/// The path of the store of `split` in the folder that a run file names.
#[must_use]
pub fn path(folder: &Path, split: Split) -> std::path::PathBuf {
    folder.join(split.name())
}
