//! The feature stores of a run: opens them, and checks that they were computed from the run's
//! encoders and images.

use std::path::{Path, PathBuf};

use config::RunFile;
use dataset::{DataSet, Split};
use image_features::{Dtype, Manifest, RowFormat, Store};

use crate::{Error, WeightSources};

/// The splits whose features a run reads. Images of the test split are always encoded.
const STORED_SPLITS: [Split; 2] = [Split::Train, Split::Validation];

/// The open feature stores of a run, by split; empty if the run reads images.
#[derive(Default)]
pub struct FeatureStores(Vec<(Split, Store)>);

impl FeatureStores {
    /// Opens the feature stores that `run` names, for those of `splits` whose features a run reads;
    /// none if it names none.
    ///
    /// # Errors
    /// A store is missing or incomplete, or was computed from other encoders or images, or with
    /// other preprocessing.
    pub fn open(run: &RunFile, data: &DataSet, weights: &WeightSources, splits: &[Split]) -> Result<Self, Error> {
        let Some(folder) = &run.data.features else { return Ok(Self::default()) };
        let open = |split: Split| {
            // A store may have any number type: `Store::open` does not compare it.
            let manifest = expected_manifest(data, split, weights, Dtype::F32)?;
            Ok((split, Store::open(&store_path(folder, split), &manifest).map_err(Error::Features)?))
        };
        let stored = STORED_SPLITS.into_iter().filter(|split| splits.contains(split));
        stored.map(open).collect()
    }

    /// The store of a split; none if its images are read.
    #[must_use]
    pub fn get(&self, split: Split) -> Option<&Store> {
        self.0.iter().find_map(|(stored, store)| (*stored == split).then_some(store))
    }

    /// All stores with their splits.
    pub fn iter(&self) -> impl Iterator<Item = (Split, &Store)> {
        self.0.iter().map(|(split, store)| (*split, store))
    }
}

impl FromIterator<(Split, Store)> for FeatureStores {
    fn from_iter<T: IntoIterator<Item = (Split, Store)>>(stores: T) -> Self {
        Self(stores.into_iter().collect())
    }
}

/// The manifest that the feature store of `split` has to have.
///
/// # Errors
/// The run trains an encoder, so its outputs change, or initializes one from the seed.
pub fn expected_manifest(
    data: &DataSet,
    split: Split,
    weights: &WeightSources,
    dtype: Dtype,
) -> Result<Manifest, Error> {
    let encoders = weights.frozen_encoders().ok_or(Error::EncodersNotFrozen)?;
    let vision = weights.vision_config().ok_or(Error::EncodersNotFrozen)?;
    // Number and width of an image's hidden states; width of all evaluators' embeddings together.
    let shape = [vision.sequence_length(), vision.width(), weights.embedding_width()].map(|size| size as u64);
    let image_count_and_names = (data.split(split).len() as u64, data.names_sha256(split));
    Ok(Manifest::new(
        split.name().to_owned(),
        image_count_and_names,
        data.preprocessing().description(),
        encoders,
        RowFormat { shape, dtype },
    ))
}

/// The path of the feature store of `split`; `folder` is `data.features` of the run file.
#[must_use]
pub fn store_path(folder: &Path, split: Split) -> PathBuf {
    folder.join(split.name())
}
