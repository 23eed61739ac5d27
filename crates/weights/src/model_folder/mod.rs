//! A model folder: a captioner with its vision encoder and vocabulary. Checkpoints are model
//! folders, and `worker import` makes one from a folder in the upstream layout
//! ([`captioner`](crate::captioner)).
//!
//! | file | content |
//! |---|---|
//! | `models.json` | [`Manifest`]: vocabulary, configs, and the location of the vision encoder |
//! | `captioner.safetensors` | encoder and decoder under their upstream names |
//! | `evaluator.safetensors` | in checkpoints of runs that train their evaluator: both its encoders under OpenAI's names, and its LoRA factors |
//! | `vision.safetensors` | in imports: the vision encoder under OpenAI's names |
//! | `released.safetensors`, `config.json` | in imports: the tensors that no computation uses, and the upstream `config.json`, so that an export equals the imported folder |
//!
//! A vision encoder that was never trained stays in the file that it was read from; the manifest
//! has the path and hash of that file.
//!
//! | module | content |
//! |---|---|
//! | `manifest` | the manifest, `models.json` |
//! | `vision_weights` | opens the weights of the vision encoder |
//! | `upstream` | converts the captioner to the upstream layout, for exports |

mod manifest;
mod upstream;
mod vision_weights;

use std::path::{Path, PathBuf};

use crate::file::read_json;
use crate::shapes::check_shapes;
use crate::{Archive, ClipWeights, Conventions, Dtype, Error, Tensor};
pub use manifest::{Manifest, TrainedEvaluator, VisionEncoder, Vocabulary, VocabularyError};
pub use vision_weights::VisionWeights;

/// The file with the manifest.
pub const MANIFEST_FILE: &str = "models.json";
/// The file with the captioner's encoder and decoder.
pub const CAPTIONER_FILE: &str = "captioner.safetensors";
/// The file with an evaluator that the run trained.
pub const EVALUATOR_FILE: &str = "evaluator.safetensors";
/// The file with the vision encoder of an import.
pub const VISION_FILE: &str = "vision.safetensors";
/// The file with the tensors of an imported folder that no computation uses.
pub const UNUSED_TENSORS_FILE: &str = "released.safetensors";
/// The file with the unchanged `config.json` of an imported folder.
pub const UPSTREAM_CONFIG_FILE: &str = "config.json";

/// Opens an evaluator of a run file: CLIP weights, with `conventions` for the settings that tensors
/// do not show, or a model folder with a trained evaluator. Also returns the vocabulary of its text
/// encoder.
///
/// # Errors
/// The path has neither, or the text encoder's vocabulary does not match.
pub fn open_evaluator(path: &Path, conventions: &Conventions) -> Result<(ClipWeights, Vocabulary), Error> {
    let manifest_path = path.join(MANIFEST_FILE);
    let (clip, vocabulary) = if manifest_path.is_file() {
        if !conventions.is_empty() {
            return Err(Error::format(
                path,
                "is a model folder, which has these settings itself: remove evaluator.clip",
            ));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let missing = "has no trained evaluator: name the evaluator file of its run instead";
        let TrainedEvaluator { config, vocabulary } = manifest.evaluator.ok_or_else(|| Error::format(path, missing))?;
        (ClipWeights::open_with_config(&path.join(EVALUATOR_FILE), config)?, vocabulary)
    } else {
        (ClipWeights::open(path, conventions)?, Vocabulary::Full)
    };
    // Evaluators have no embedding of the pad token.
    let (encoder_size, expected_size) = (clip.config().text.vocabulary_size, vocabulary.size() - 1);
    if encoder_size != expected_size {
        let problem = format!("its text encoder has {encoder_size} tokens, its vocabulary {expected_size}");
        return Err(Error::format(clip.path(), problem));
    }
    Ok((clip, vocabulary))
}

/// An opened model folder.
pub struct ModelFolder {
    path: PathBuf,
    manifest: Manifest,
    captioner: Archive,
}

/// The model folder in `path` whose name sorts last, or else that in `path/checkpoints`: the newest
/// checkpoint of a run whose output folder is `path`.
fn newest_model_folder(path: &Path) -> Option<PathBuf> {
    let newest_in = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.join(MANIFEST_FILE).is_file()).max()
    };
    newest_in(path).or_else(|| newest_in(&path.join("checkpoints")))
}

impl ModelFolder {
    /// Opens the folder `path`.
    ///
    /// # Errors
    /// It is not a model folder, or is inconsistent.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let manifest_path = path.join(MANIFEST_FILE);
        if !manifest_path.is_file() {
            let remedy = match newest_model_folder(path) {
                Some(newest) => format!("it contains checkpoints: name one of them, such as {}", newest.display()),
                None => "`worker import` converts a folder of DiCO's release".to_owned(),
            };
            return Err(Error::format(path, format!("is not a model folder: there is no {MANIFEST_FILE} ({remedy})")));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let captioner = Archive::open(&path.join(CAPTIONER_FILE))?;
        let required = manifest.captioner.shapes().map_err(|error| Error::format(&manifest_path, error))?;
        check_shapes(captioner.path(), &required, &captioner.shapes())?;
        Ok(Self { path: path.to_owned(), manifest, captioner })
    }

    /// The path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The manifest of the folder.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The parameters of encoder and decoder under their upstream names.
    #[must_use]
    pub fn captioner(&self) -> Vec<(String, Tensor<'_>)> {
        self.captioner.tensors()
    }

    /// Whether the captioner is untrained: its last layer norm has the initial ones and zeros,
    /// which every optimizer step changes.
    #[must_use]
    pub fn is_captioner_untrained(&self) -> bool {
        let is_filled_with = |name: &str, value: f32| {
            let tensor = self.captioner.get(name).filter(|tensor| tensor.dtype == Dtype::F32);
            tensor.is_some_and(|tensor| tensor.bytes.chunks_exact(4).all(|bytes| bytes == value.to_le_bytes()))
        };
        is_filled_with("decoder.transformer.ln_f.weight", 1.0) && is_filled_with("decoder.transformer.ln_f.bias", 0.0)
    }
}

#[cfg(test)]
mod tests;
