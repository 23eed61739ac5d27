//! The captioner as DiCO's authors publish it: a folder of Hugging Face's with a `config.json` and weights, in which an encoder
//! (a CLIP vision transformer, a projection and a BERT) and a decoder (a GPT-2 with cross-attention) lie.

mod config;
mod export;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use config::complete;
pub use config::{MODELING_MODULE, config_json};
pub use export::{safetensors_start, vision_to_released, write_safetensors};
pub use names::VISION_PREFIX;
pub(crate) use names::WRAPPED_VISION_PREFIX;

use crate::archive::Archive;
use crate::clip::config::{PREPROCESSOR, image_processor};
use crate::clip::{Activation, LoraReading, Normalization, Vision};
use crate::error::Error;
use crate::file::read_json;
use crate::folder::Vocabulary;
use crate::renaming::Renaming;
use crate::shapes::{Shapes, compare};
use crate::tensor::Tensor;
use names::{OUTPUT, Part, WORDS};

/// Sizes of encoder and decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptionerArchitecture {
    /// Width of the vision tower's hidden states.
    pub vision_width: usize,
    /// Width of encoder and decoder.
    pub width: usize,
    /// Attention heads of either.
    pub heads: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Width between the two halves of the encoder's feed-forward layers.
    pub encoder_inner: usize,
    /// Positions that the encoder has embeddings for.
    pub encoder_positions: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Width between the two halves of the decoder's feed-forward layers.
    pub decoder_inner: usize,
    /// Positions that the decoder has embeddings for.
    pub positions: usize,
    /// Tokens known, begin, end and pad included.
    pub vocabulary_size: usize,
}

/// Sizes of a captioner's vision tower, and how it computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionArchitecture {
    /// Pixels on a side.
    pub image_size: usize,
    /// The tower; Hugging Face knows transformers only.
    pub vision: Vision,
    /// Activation of its MLPs. A ResNet has none.
    #[serde(default)]
    pub activation: Activation,
    /// How pixels are normalised.
    #[serde(default)]
    pub normalization: Normalization,
}

impl VisionArchitecture {
    /// A tower of these sizes with OpenAI's activation and normalisation.
    #[must_use]
    pub fn new(image_size: usize, vision: Vision) -> Self {
        let (activation, normalization) = Default::default();
        Self { image_size, vision, activation, normalization }
    }

    /// In words, how it computes otherwise than OpenAI's model of its sizes; nothing where it does not.
    #[must_use]
    pub fn computation(&self, lora: Option<LoraReading>) -> String {
        let Self { vision, activation, normalization: Normalization { mean, std }, .. } = self;
        let lora = lora.map(|reading| format!("LoRA factors {reading:?}"));
        let heads = (vision.heads() * 64 != vision.hidden_width()).then(|| format!("{} heads", vision.heads()));
        let is_plain = self.normalization == Normalization::default();
        let normalization = (!is_plain).then(|| format!("mean {mean:?}, std {std:?}"));
        let activation = (*activation != Activation::default()).then(|| format!("{activation:?}"));
        let parts: Vec<String> = [activation, normalization, heads, lora].into_iter().flatten().collect();
        parts.join(", ")
    }

    /// Width of the hidden states; see [`Vision::hidden_width`].
    #[must_use]
    pub fn width(&self) -> usize {
        self.vision.hidden_width()
    }

    /// Hidden states of an image; see [`Vision::tokens`].
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.vision.tokens(self.image_size)
    }
}

/// An opened folder. Its configuration and its weights have been found to agree.
pub struct Released {
    archive: Archive,
    config: Value,
    captioner: CaptionerArchitecture,
    vision: VisionArchitecture,
    vision_prefix: &'static str,
    vision_names: Renaming,
    /// Names in the file, by published name.
    captioner_names: BTreeMap<String, String>,
    unused: Vec<String>,
}

impl Released {
    /// Opens the folder.
    ///
    /// # Errors
    /// Names the file and the setting or tensor that is damaged, not supported, or at odds with the others.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let config: Value = read_json(&path)?;
        let (captioner, mut vision) = config::read(&path, &config)?;
        let preprocessor = folder.join(PREPROCESSOR);
        if preprocessor.is_file() {
            vision.normalization = image_processor(&preprocessor)?;
        }
        let archive = Archive::open(folder)?;
        let vision_prefix = names::vision_prefix(&archive);
        let mut vision_names = Renaming::default();
        let mut captioner_names = BTreeMap::new();
        let mut unused = Vec::new();
        for name in archive.names() {
            match names::part(name, vision_prefix) {
                Part::Vision(renamed) => vision_names.add(folder, name, renamed)?,
                Part::Captioner => {
                    captioner_names.insert(name.to_owned(), name.to_owned());
                }
                Part::Unused => unused.push(name.to_owned()),
            }
        }
        // Of tensors that are one and the same, writers of safetensors keep whichever they like.
        if archive.shape(OUTPUT).is_some() {
            captioner_names.entry(WORDS.to_owned()).or_insert_with(|| OUTPUT.to_owned());
        }
        let released =
            Self { archive, config, captioner, vision, vision_prefix, vision_names, captioner_names, unused };
        released.check_tie()?;
        released.check_shapes()?;
        Ok(released)
    }

    /// Content of `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Sizes of encoder and decoder.
    #[must_use]
    pub fn captioner(&self) -> &CaptionerArchitecture {
        &self.captioner
    }

    /// The captioner's tokens: CLIP's, or those of them that `config.json` lists.
    ///
    /// # Errors
    /// The list is malformed, or the vocabulary has another size than `config.json` says.
    pub fn vocabulary(&self) -> Result<Vocabulary, Error> {
        let path = self.archive.path().join("config.json");
        config::vocabulary(&path, &self.config, self.captioner.vocabulary_size)
    }

    /// Sizes of the vision tower.
    #[must_use]
    pub fn vision(&self) -> &VisionArchitecture {
        &self.vision
    }

    /// What stands before the names of the vision tower in this folder; for [`vision_to_released`].
    #[must_use]
    pub fn vision_prefix(&self) -> &str {
        self.vision_prefix
    }

    /// See [`Archive::sha256`].
    #[must_use]
    pub fn sha256(&self) -> String {
        self.archive.sha256()
    }

    /// Parameters of encoder and decoder under their published names, sorted: `encoder.vis_enc_to_enc_proj.*`,
    /// `encoder.encoder.*`, `decoder.transformer.*`. What is unknown is among them, for the caller to find it too much.
    #[must_use]
    pub fn captioner_tensors(&self) -> Vec<(String, Tensor<'_>)> {
        let names = self.captioner_names.iter();
        names.filter_map(|(name, old)| Some((name.clone(), self.archive.get(old)?))).collect()
    }

    /// Parameters of the vision tower under OpenAI's names, sorted: `visual.*`. There is no `visual.proj`.
    ///
    /// # Errors
    /// Names tensors that do not fit together.
    pub fn vision_tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        self.vision_names.tensors(&self.archive)
    }

    /// What no computation needs but an exact export gives back, sorted by name: the encoder's word embeddings and pooler,
    /// causal masks, position numbers, and `decoder.lm_head.weight`, which equals the decoder's word embeddings.
    #[must_use]
    pub fn unused_tensors(&self) -> Vec<(String, Tensor<'_>)> {
        self.unused.iter().filter_map(|name| Some((name.clone(), self.archive.get(name)?))).collect()
    }

    fn check_tie(&self) -> Result<(), Error> {
        match (self.archive.get(OUTPUT), self.archive.get(WORDS)) {
            (Some(output), Some(words)) if output != words => {
                let problem = format!("differs from {WORDS}; only tied ones are supported");
                Err(Error::tensor(self.archive.path(), OUTPUT, problem))
            }
            _ => Ok(()),
        }
    }

    /// A configuration can say anything; sizes that the weights bear out are no larger than the files.
    fn check_shapes(&self) -> Result<(), Error> {
        let path = self.archive.path();
        let absurd = |problem: String| Error::format(&path.join("config.json"), problem);
        let mut needed = self.captioner.shapes().map_err(absurd)?;
        let mut found: Shapes = self
            .captioner_names
            .iter()
            .filter_map(|(name, old)| Some((name.clone(), self.archive.shape(old)?.to_vec())))
            .collect();
        needed.extend(self.vision.shapes().map_err(absurd)?);
        let width = self.vision.width();
        needed.extend(["weight", "bias"].map(|part| (format!("visual.ln_post.{part}"), vec![width])));
        found.extend(self.vision_names.shapes(&self.archive)?);
        compare(path, &needed, &found)
    }
}

#[cfg(test)]
mod tests;
