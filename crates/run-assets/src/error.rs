use weights::model_folder::MANIFEST_FILE;

/// An asset of a run that cannot be used. The message is one line; it begins with the key of the
/// run file that names the asset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The images and captions cannot be read, or the run cannot use them.
    #[error("data: {0}")]
    Data(#[from] dataset::Error),
    /// The scenes of the synthetic data set cannot be read.
    #[error("data.scenes: {0}")]
    Scenes(#[source] synthetic_data::Error),
    /// A feature store cannot be read, or it was computed from other encoders or images.
    #[error("data.features: {0}")]
    Features(#[source] image_features::Error),
    /// The run trains an encoder, so its outputs change, or it initializes one from the seed.
    #[error(
        "features can be stored only of frozen vision encoders: set evaluator.weights, train no evaluator in a \
         contrastive stage, and set captioner.vision_encoder if it differs"
    )]
    EncodersNotFrozen,
    /// The weights of a model cannot be used.
    #[error("{key}: {source}")]
    Weights {
        /// The key of the run file that names the weights.
        key: String,
        /// The problem with the weights.
        source: WeightsError,
    },
    /// The run file gives neither a preset nor weights of a model.
    #[error("{key}: needs either `preset` or `weights`")]
    NoModel {
        /// The key of the model.
        key: String,
    },
    /// The captioner has fewer positions than the run's captions have tokens.
    #[error("captioner.weights: {0}")]
    Positions(#[source] config::LengthError),
    /// The checkpoints of the run cannot be read.
    #[error("checkpoints: {0}")]
    Checkpoints(#[source] checkpoint_store::Error),
    /// The manifest of a checkpoint cannot be parsed.
    #[error("checkpoints: {checkpoint}: {MANIFEST_FILE}: {source}")]
    CheckpointManifest {
        /// The name of the checkpoint.
        checkpoint: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A file of METEOR or SPICE is missing or damaged.
    #[error("scoring: {0}")]
    Scoring(#[source] caption_metrics::Error),
}

impl Error {
    /// For `map_err`: the weights under `key` cannot be used.
    pub(crate) fn weights<E: Into<WeightsError>>(key: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::Weights { key: key.to_owned(), source: error.into() }
    }
}

/// Why weights or a model folder cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// They cannot be read, or they are not the weights of such a model.
    #[error(transparent)]
    Content(#[from] weights::Error),
    /// The files of a model folder are not those that were written.
    #[error(transparent)]
    Checksum(#[from] checkpoint_store::Error),
}
