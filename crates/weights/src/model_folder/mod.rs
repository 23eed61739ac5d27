//! A model folder: a captioner with its vision encoder and vocabulary. Checkpoints are model
//! folders, and `worker import` makes one from a folder in the upstream layout, in which DiCO's
//! authors published theirs ([`captioner`](crate::captioner)). "Upstream names" are the names of
//! tensors in that layout.
//!
//! | file | content |
//! |---|---|
//! | `models.json` | [`Manifest`]: vocabulary, configs, and the location of the vision encoder |
//! | `captioner.safetensors` | encoder and decoder under their upstream names |
//! | `evaluator.safetensors` | in checkpoints of runs that train their evaluator: both encoders of the evaluator under OpenAI's names, and its LoRA factors |
//! | `vision.safetensors` | in imports: the vision encoder under OpenAI's names |
//! | `released.safetensors`, `config.json` | in imports: the tensors of the imported folder that no computation uses, and its `config.json`, so that an export equals the imported folder |
//!
//! In checkpoints, a vision encoder that was never trained stays in the file that it was read from;
//! the manifest has the path and hash of that file.
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

/// Opens the evaluator at a path of a run file or command line: CLIP weights, with `conventions`
/// for the settings that tensors do not show, or a model folder with a trained evaluator. Also
/// returns the vocabulary of the text encoder.
///
/// # Errors
/// The path has neither, the weights cannot be opened or do not fit their config, the text
/// encoder's vocabulary does not match, or `conventions` are given for a model folder, whose
/// manifest has its own.
pub fn open_evaluator(path: &Path, conventions: &Conventions) -> Result<(ClipWeights, Vocabulary), Error> {
    let manifest_path = path.join(MANIFEST_FILE);
    let (clip, vocabulary) = if manifest_path.is_file() {
        if !conventions.is_empty() {
            return Err(Error::invalid(
                path,
                "is a model folder, whose manifest has the settings of the evaluator: remove evaluator.clip",
            ));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let missing = "has no evaluator (its run trained none, or it is an import): name CLIP weights instead";
        let TrainedEvaluator { config, vocabulary } =
            manifest.evaluator.ok_or_else(|| Error::invalid(path, missing))?;
        (ClipWeights::open_with_config(&path.join(EVALUATOR_FILE), config)?, vocabulary)
    } else {
        (ClipWeights::open(path, conventions)?, Vocabulary::Full)
    };
    // Evaluators have no embedding of the pad token.
    let (encoder_size, expected_size) = (clip.config().text.vocabulary_size, vocabulary.size() - 1);
    if encoder_size != expected_size {
        let problem = format!("its text encoder has {encoder_size} tokens, its vocabulary {expected_size}");
        return Err(Error::invalid(clip.path(), problem));
    }
    Ok((clip, vocabulary))
}

/// An opened model folder.
pub struct ModelFolder {
    path: PathBuf,
    manifest: Manifest,
    captioner: Archive,
}

/// The model folder directly below `path` whose name sorts last. If there is none: the same below
/// `path/checkpoints`, which is the newest checkpoint of a run if `path` is its output folder.
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
    /// `path` is not a model folder, or its files cannot be read or are inconsistent.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let manifest_path = path.join(MANIFEST_FILE);
        if !manifest_path.is_file() {
            let remedy = match newest_model_folder(path) {
                Some(newest) => format!("it contains checkpoints: name one of them, such as {}", newest.display()),
                None => "`worker import` converts a folder of DiCO's release".to_owned(),
            };
            return Err(Error::invalid(path, format!("is not a model folder: there is no {MANIFEST_FILE} ({remedy})")));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let captioner = Archive::open(&path.join(CAPTIONER_FILE))?;
        let required = manifest.captioner.shapes().map_err(|error| Error::invalid(&manifest_path, error))?;
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

    /// The parameters of the captioner's encoder and decoder, under their upstream names.
    #[must_use]
    pub fn captioner(&self) -> Vec<(String, Tensor<'_>)> {
        self.captioner.tensors()
    }

    /// Whether the captioner is untrained: its last layer norm still has its initial weights, one,
    /// and biases, zero, which every optimizer step changes.
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
