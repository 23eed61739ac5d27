//! All assets that a command needs.

use std::sync::Arc;

use caption_metrics::{MetricFiles, Metrics};
use checkpoint_store::Checkpoints;
use config::{RunFile, Scoring};
use dataset::{DataSet, Split};
use synthetic_data::Scenes;
use tokenizer::{MAX_TOKEN_BYTES, Vocabulary};

use crate::{Error, FeatureStores, WeightSources, initial_vocabulary, saved_vocabulary};

/// The assets of a run that a command needs. Each constructor opens those of one purpose.
pub struct RunAssets {
    /// Images and captions: all splits to train and to encode, otherwise the split to evaluate.
    pub data: Arc<DataSet>,
    /// The scenes of the synthetic data set, if the images are from it.
    pub scenes: Option<Scenes>,
    /// The weights of the run's models.
    pub weights: WeightSources,
    /// The feature stores that are read instead of images.
    pub feature_stores: FeatureStores,
}

impl RunAssets {
    /// The assets that a worker trains `run` with. A corpus vocabulary is that of the run's newest
    /// checkpoint, if it has one.
    ///
    /// # Errors
    /// An asset cannot be read, or it does not fit the run file or the others.
    pub fn for_training(run: &RunFile, checkpoints: &Checkpoints) -> Result<Self, Error> {
        let data = Arc::new(DataSet::load(&run.data)?);
        let vocabulary = saved_vocabulary(run, checkpoints)?.unwrap_or_else(|| initial_vocabulary(run, &data));
        Self::with_training_data(run, data, vocabulary)
    }

    /// As [`for_training`](Self::for_training), with data that the caller has loaded. Models
    /// without a vocabulary of their own get `vocabulary`.
    ///
    /// # Errors
    /// An asset cannot be read, or it does not fit the run file or the others.
    pub fn with_training_data(run: &RunFile, data: Arc<DataSet>, vocabulary: Vocabulary) -> Result<Self, Error> {
        data.check_complete(run)?;
        let scenes = load_scenes(run)?;
        let weights = WeightSources::open(run, vocabulary)?;
        let max_caption_bytes = run.decoding.max_length as usize * MAX_TOKEN_BYTES;
        data.check_evaluation(weights.evaluation_embedding_width(), max_caption_bytes)?;
        let feature_stores = FeatureStores::open(run, &data, &weights, &Split::ALL)?;
        Ok(Self { data, scenes, weights, feature_stores })
    }

    /// The assets to evaluate one split of `run`, whose models all have weights. Loads only this
    /// split.
    ///
    /// # Errors
    /// As for [`for_training`](Self::for_training).
    pub fn for_evaluation(run: &RunFile, split: Split) -> Result<Self, Error> {
        let data = Arc::new(DataSet::load_split(&run.data, split)?);
        let scenes = load_scenes(run)?;
        // Weights have their own vocabularies.
        let weights = WeightSources::open(run, Vocabulary::full())?;
        let feature_stores = FeatureStores::open(run, &data, &weights, &[split])?;
        Ok(Self { data, scenes, weights, feature_stores })
    }

    /// The assets to encode the images of `run` for feature stores.
    ///
    /// # Errors
    /// As for [`for_training`](Self::for_training).
    pub fn for_encoding(run: &RunFile) -> Result<Self, Error> {
        let data = Arc::new(DataSet::load(&run.data)?);
        let weights = WeightSources::open(run, initial_vocabulary(run, &data))?;
        Ok(Self { data, scenes: None, weights, feature_stores: FeatureStores::default() })
    }
}

/// Opens the caption metrics with the files of the key `scoring`.
///
/// # Errors
/// A file is missing or damaged.
pub fn open_metrics(scoring: &Scoring) -> Result<Metrics, Error> {
    let Scoring { meteor_jar, meteor_paraphrases, spice_jar } = scoring;
    let files = MetricFiles::new([meteor_jar, meteor_paraphrases, spice_jar]);
    Metrics::open(&files).map_err(Error::Scoring)
}

fn load_scenes(run: &RunFile) -> Result<Option<Scenes>, Error> {
    run.data.scenes.as_deref().map(Scenes::load).transpose().map_err(Error::Scenes)
}
