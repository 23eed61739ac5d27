//! Opens weights and model folders, and verifies their checksums.

use std::path::Path;

use tokenizer::Vocabulary;
use weights::model_folder::{self, ModelFolder};
use weights::{ClipWeights, Conventions};

use crate::WeightsError;

/// Opens the model folder `path`, written by a run or by `worker import`, and verifies its
/// checksums.
///
/// # Errors
/// It is not a model folder, or it is damaged.
pub fn open_folder(path: &Path) -> Result<ModelFolder, WeightsError> {
    let folder = ModelFolder::open(path)?;
    checkpoint_store::verify_folder(path)?;
    Ok(folder)
}

/// Opens the CLIP at `path`, a file or a checkpoint of a run, with its vocabulary. Verifies the
/// checksums of a checkpoint.
///
/// # Errors
/// It is not a CLIP, or damaged, or `conventions` and its own files lack one of its settings.
pub fn open_evaluator(path: &Path, conventions: &Conventions) -> Result<(ClipWeights, Vocabulary), WeightsError> {
    let (clip, vocabulary) = model_folder::open_evaluator(path, conventions)?;
    if path.is_dir() && path.join(model_folder::MANIFEST_FILE).is_file() {
        checkpoint_store::verify_folder(path)?;
    }
    Ok((clip, Vocabulary::from_manifest(&vocabulary)))
}
