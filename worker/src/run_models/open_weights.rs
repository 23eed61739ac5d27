//! Opening of weight files and model folders, and construction of models from them.

use std::path::Path;

use anyhow::{Result, anyhow};
use tokenizer::Vocabulary;
use weights::model_folder::{self, ModelFolder};
use weights::{ClipWeights, Conventions};

use crate::captioner::Captioner;
use crate::clip::{Clip, VisionEncoder};
use crate::nn::{Backend, ParameterMismatchError};
use crate::tensor_conversion;

/// Opens the model folder `path`, written by a run or by `worker import`, and verifies its
/// checksums.
///
/// # Errors
/// It is not a model folder, or it is damaged.
pub fn open_folder(path: &Path) -> Result<ModelFolder> {
    let folder = ModelFolder::open(path)?;
    checkpoint_store::verify_folder(path)?;
    Ok(folder)
}

/// Opens the CLIP at `path`, a file or a checkpoint of a run, with its vocabulary. Verifies the
/// checksums of a checkpoint.
///
/// # Errors
/// It is not a CLIP, or damaged, or `conventions` and its own files lack one of its settings.
pub fn open_evaluator(path: &Path, conventions: &Conventions) -> Result<(ClipWeights, Vocabulary)> {
    let (clip, vocabulary) = model_folder::open_evaluator(path, conventions)?;
    if path.is_dir() && path.join(model_folder::MANIFEST_FILE).is_file() {
        checkpoint_store::verify_folder(path)?;
    }
    Ok((clip, Vocabulary::from_manifest(&vocabulary)))
}

/// Builds a frozen CLIP with these weights.
///
/// # Errors
/// The weights cannot be read, or do not fit their config.
pub(super) fn build_clip(clip: &ClipWeights, backend: Backend) -> Result<Clip> {
    let values = tensor_conversion::from_weights(clip.tensors()?);
    Clip::from_tensors(clip.config().clone(), &values, backend).map_err(|error| mismatch_error(clip.path(), &error))
}

/// Builds the vision encoder of a model folder's captioner.
///
/// # Errors
/// It is missing, or its tensors do not fit its config.
pub fn open_vision_encoder(folder: &ModelFolder, backend: impl Into<Backend>) -> Result<VisionEncoder> {
    let weights = folder.vision()?;
    let values = tensor_conversion::from_weights(weights.tensors()?);
    let vision_encoder = VisionEncoder::new(folder.manifest().vision.config.clone(), &values, backend);
    vision_encoder.map_err(|error| mismatch_error(weights.path(), &error))
}

/// Builds the captioner of a model folder.
///
/// # Errors
/// Its tensors do not fit its config.
pub fn open_captioner(folder: &ModelFolder, backend: impl Into<Backend>) -> Result<Captioner> {
    let values = tensor_conversion::from_weights(folder.captioner());
    let captioner = Captioner::from_tensors(folder.manifest().captioner.clone(), &values, backend);
    captioner.map_err(|error| mismatch_error(folder.path(), &error))
}

/// The error of weights at `path` that do not fit their config.
pub(super) fn mismatch_error(path: &Path, error: &ParameterMismatchError) -> anyhow::Error {
    anyhow!("{}: {error}", path.display())
}
