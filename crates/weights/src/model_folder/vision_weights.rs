//! The weights of a model folder's vision encoder.

use std::path::Path;

use super::{MANIFEST_FILE, ModelFolder, TrainedEvaluator, VisionEncoder};
use crate::clip::{LoraReading, is_lora_factor};
use crate::shapes::check_shapes;
use crate::{Archive, ClipWeights, Conventions, Error, Tensor, VisionConfig};

/// The weights of a vision encoder.
pub enum VisionWeights {
    /// A file with OpenAI's names, whose tensors are used unchanged.
    OpenAi(Archive),
    /// CLIP weights in another layout, or with LoRA factors.
    Clip(Box<ClipWeights>),
}

impl VisionWeights {
    /// The tensors under OpenAI's names; may include those of a text encoder.
    ///
    /// # Errors
    /// The tensors are malformed.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        match self {
            Self::OpenAi(archive) => Ok(archive.tensors()),
            Self::Clip(clip) => clip.tensors(),
        }
    }

    /// Which LoRA factors of the file are added to its weights; none if the file has no factors.
    #[must_use]
    pub fn lora(&self) -> Option<LoraReading> {
        match self {
            Self::OpenAi(_) => None,
            Self::Clip(clip) => clip.lora(),
        }
    }

    /// The SHA-256 of the file.
    #[must_use]
    pub fn sha256(&self) -> String {
        match self {
            Self::OpenAi(archive) => archive.sha256(),
            Self::Clip(clip) => clip.sha256(),
        }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::OpenAi(archive) => archive.path(),
            Self::Clip(clip) => clip.path(),
        }
    }
}

impl ModelFolder {
    /// Opens the weights of the vision encoder.
    ///
    /// # Errors
    /// The file is not at the path in the manifest, cannot be read, has changed, or does not fit
    /// the config.
    pub fn vision(&self) -> Result<VisionWeights, Error> {
        let VisionEncoder { path, sha256, .. } = &self.manifest.vision;
        match sha256 {
            None => self.vision_in_folder(path),
            Some(sha256) => self.vision_elsewhere(path, sha256),
        }
    }

    fn vision_in_folder(&self, path: &Path) -> Result<VisionWeights, Error> {
        if path.components().count() != 1 {
            return Err(Error::setting(&self.path.join(MANIFEST_FILE), "vision.path", "must be a file of the folder"));
        }
        let archive = Archive::open(&self.path.join(path))?;
        let has_lora_factors = archive.names().any(is_lora_factor);
        match &self.manifest.evaluator {
            Some(TrainedEvaluator { config, .. }) if has_lora_factors => {
                self.vision_of_clip(ClipWeights::open_with_config(archive.path(), config.clone())?)
            }
            _ => self.vision_of_archive(archive),
        }
    }

    fn vision_elsewhere(&self, path: &Path, expected_sha256: &str) -> Result<VisionWeights, Error> {
        let archive = Archive::open(path)?;
        let sha256 = archive.sha256();
        if sha256 != expected_sha256 {
            let problem =
                format!("has SHA-256 {sha256}, but {} was trained with {expected_sha256}", self.path.display());
            return Err(Error::invalid(path, problem));
        }
        let lora = self.manifest.vision.lora;
        let has_openai_names = archive.shape("visual.conv1.weight").is_some();
        if has_openai_names && lora.is_none() {
            return self.vision_of_archive(archive);
        }
        let VisionConfig { activation, normalization, backbone, .. } = &self.manifest.vision.config;
        let conventions = Conventions { lora, ..Conventions::of_vision(*activation, *normalization, backbone) };
        self.vision_of_clip(ClipWeights::open(path, &conventions)?)
    }

    /// The encoder of a CLIP whose tensors do not have OpenAI's names, or that has LoRA factors.
    fn vision_of_clip(&self, clip: ClipWeights) -> Result<VisionWeights, Error> {
        if clip.config().vision_config() != self.manifest.vision.config {
            let problem = format!("has another config than {} says", self.path.join(MANIFEST_FILE).display());
            return Err(Error::invalid(clip.path(), problem));
        }
        Ok(VisionWeights::Clip(Box::new(clip)))
    }

    /// The encoder in a file with OpenAI's names, which may contain other tensors of a CLIP too.
    fn vision_of_archive(&self, archive: Archive) -> Result<VisionWeights, Error> {
        let config = &self.manifest.vision.config;
        let required = config.shapes().map_err(|error| Error::invalid(&self.path.join(MANIFEST_FILE), error))?;
        let mut shapes = archive.shapes();
        shapes.retain(|name, _| required.contains_key(name));
        check_shapes(archive.path(), &required, &shapes)?;
        Ok(VisionWeights::OpenAi(archive))
    }
}
