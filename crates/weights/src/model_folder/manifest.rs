//! The manifest of a model folder, `models.json`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::MANIFEST_FILE;
use crate::clip::LoraReading;
use crate::{CaptionerConfig, ClipConfig, Error, VisionBackbone, VisionConfig};

/// The version of the format; incremented when older programs cannot read newer folders.
const FORMAT_VERSION: u32 = 1;
/// The size of the full vocabulary: CLIP's tokens, and a pad token.
const FULL_VOCABULARY_SIZE: usize = 49_409;

/// The content of a model folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of the format, [`FORMAT_VERSION`].
    format: u32,
    /// The captioner's vocabulary.
    pub vocabulary: Vocabulary,
    /// The captioner's config.
    pub captioner: CaptionerConfig,
    /// The captioner's vision encoder.
    pub vision: VisionEncoder,
    /// The evaluator that the run trained, in [`EVALUATOR_FILE`](super::EVALUATOR_FILE); none if
    /// the run did not train it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<TrainedEvaluator>,
}

/// An evaluator that a run trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedEvaluator {
    /// The config of the evaluator.
    #[serde(rename = "architecture")]
    pub config: ClipConfig,
    /// The vocabulary of the evaluator's text encoder.
    pub vocabulary: Vocabulary,
}

/// The tokens that a model knows, with their ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// All of CLIP's tokens, then a pad token.
    Full,
    /// A subset of CLIP's tokens, as a list of their CLIP ids, ascending and without begin and end
    /// tokens. The model renumbers them without gaps; begin, end and pad tokens follow.
    #[serde(rename = "tokens")]
    Subset(Vec<u16>),
}

/// Why a list of CLIP token ids is not a vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VocabularyError {
    /// The ids are not in ascending order, or one occurs twice.
    #[error("must ascend")]
    NotAscending,
    /// An id is that of the begin or end token, or greater.
    #[error("must leave begin and end out")]
    SpecialToken,
}

impl Vocabulary {
    /// The number of tokens, begin, end and pad tokens included.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Full => FULL_VOCABULARY_SIZE,
            Self::Subset(ids) => ids.len().saturating_add(3),
        }
    }

    pub(crate) fn check(&self) -> Result<(), VocabularyError> {
        match self {
            Self::Subset(ids) if !ids.windows(2).all(|pair| pair[0] < pair[1]) => Err(VocabularyError::NotAscending),
            Self::Subset(ids) if ids.last().is_some_and(|&last| usize::from(last) >= FULL_VOCABULARY_SIZE - 3) => {
                Err(VocabularyError::SpecialToken)
            }
            _ => Ok(()),
        }
    }
}

/// The config of a vision encoder, and the file with its weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionEncoder {
    /// The config of the vision encoder.
    #[serde(rename = "architecture")]
    pub config: VisionConfig,
    /// A safetensors file in the folder, or the path of CLIP weights elsewhere.
    pub path: PathBuf,
    /// The SHA-256 of a file elsewhere; none for a file in the folder.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Which LoRA factors of the file are added to its weights; none if the file has no factors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraReading>,
    /// In imports: the prefix of the upstream names of the encoder's tensors.
    #[serde(default, rename = "published_prefix")]
    pub upstream_prefix: Option<String>,
}

impl Manifest {
    /// The manifest of a captioner with its vocabulary and vision encoder, and of the evaluator
    /// that was trained with it, if any.
    #[must_use]
    pub fn new(
        vocabulary: Vocabulary,
        captioner: CaptionerConfig,
        vision: VisionEncoder,
        evaluator: Option<TrainedEvaluator>,
    ) -> Self {
        Self { format: FORMAT_VERSION, vocabulary, captioner, vision, evaluator }
    }

    /// Writes the manifest to `folder`.
    ///
    /// # Errors
    /// The file cannot be written, or a path in the manifest is not Unicode.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST_FILE);
        let text = self.to_json()?;
        let written = File::create(&path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(Error::file(&path))
    }

    /// The manifest as JSON.
    ///
    /// # Errors
    /// A path in the manifest is not Unicode.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec_pretty(self).map_err(|error| Error::invalid(Path::new(MANIFEST_FILE), error))
    }

    /// Checks that the format is known, and that configs and vocabularies are valid and consistent.
    /// `path` is the file, for messages.
    pub(super) fn check(&self, path: &Path) -> Result<(), Error> {
        if self.format != FORMAT_VERSION {
            let problem = format!("it has format {}, this program reads {FORMAT_VERSION}", self.format);
            return Err(Error::invalid(path, problem));
        }
        self.check_heads(path)?;
        let vision = &self.vision.config;
        if let VisionBackbone::Transformer { patch_size, .. } = vision.backbone
            && !(1..=vision.image_size).contains(&patch_size)
        {
            let problem = format!("{patch_size} does not fit into an image of {}", vision.image_size);
            return Err(Error::setting(path, "vision.architecture.patch_size", problem));
        }
        let (length, width) = (vision.sequence_length(), vision.width());
        if length > self.captioner.encoder_positions || width != self.captioner.vision_width {
            let problem = format!("{length} hidden states of {width} do not fit the captioner");
            return Err(Error::setting(path, "vision.architecture", problem));
        }
        let evaluator_vocabulary = self.evaluator.as_ref().map(|evaluator| &evaluator.vocabulary);
        for vocabulary in std::iter::once(&self.vocabulary).chain(evaluator_vocabulary) {
            vocabulary.check().map_err(|error| Error::setting(path, "vocabulary", error))?;
        }
        let size = self.vocabulary.size();
        if size != self.captioner.vocabulary_size {
            let problem = format!("has {size} tokens; the captioner has {}", self.captioner.vocabulary_size);
            return Err(Error::setting(path, "vocabulary", problem));
        }
        Ok(())
    }

    /// Checks that the number of attention heads of each model divides its width.
    fn check_heads(&self, path: &Path) -> Result<(), Error> {
        let vision_heads = |backbone: &VisionBackbone| (backbone.heads(), backbone.hidden_width());
        let evaluator = self.evaluator.as_ref().map(|evaluator| {
            let ClipConfig { vision, text, .. } = &evaluator.config;
            [
                ("evaluator.architecture.vision.heads", vision_heads(vision)),
                ("evaluator.architecture.text.heads", (text.heads, text.width)),
            ]
        });
        let captioner = ("captioner.heads", (self.captioner.heads, self.captioner.width));
        let vision = ("vision.architecture.heads", vision_heads(&self.vision.config.backbone));
        for (key, (heads, width)) in [captioner, vision].into_iter().chain(evaluator.into_iter().flatten()) {
            if heads == 0 || width % heads != 0 {
                return Err(Error::setting(path, key, format!("{heads} heads cannot share a width of {width}")));
            }
        }
        Ok(())
    }
}
