//! The upstream layout of captioners, in which DiCO's authors published theirs: a Hugging Face
//! folder with `config.json` and weights of an encoder (a CLIP vision transformer, a projection and
//! a BERT) and a decoder (a GPT-2 with cross-attention). "Upstream names" are the names of tensors
//! in it.
//!
//! | module | content |
//! |---|---|
//! | `config` | reads and writes `config.json` |
//! | `names` | the upstream names of tensors |
//! | `export` | writes tensors in the upstream layout |

mod config;
mod export;
mod names;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use config::add_export_settings;
pub use config::{MODELING_MODULE, upstream_config_json};
pub use export::{safetensors_header, vision_to_upstream, write_safetensors};
pub use names::VISION_PREFIX;
pub(crate) use names::WRAPPED_VISION_PREFIX;

use crate::archive::Archive;
use crate::clip::config_files::{PREPROCESSOR_CONFIG, read_image_processor};
use crate::clip::{Activation, LoraReading, Normalization, VisionBackbone};
use crate::error::Error;
use crate::file::read_json;
use crate::model_folder::Vocabulary;
use crate::shapes::{Shapes, TooManyLayersError, check_shapes};
use crate::tensor::Tensor;
use crate::tensor_mapping::TensorMapping;
use names::{LM_HEAD, TensorRole, WORD_EMBEDDINGS};

/// The config of a captioner: the sizes of encoder and decoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptionerConfig {
    /// The width of the vision encoder's hidden states.
    pub vision_width: usize,
    /// The width of encoder and decoder.
    pub width: usize,
    /// The number of attention heads in each layer of encoder and decoder.
    pub heads: usize,
    /// The number of layers of the encoder.
    pub encoder_layers: usize,
    /// The inner width of the encoder's feed-forward layers.
    pub encoder_inner: usize,
    /// The number of position embeddings of the encoder.
    pub encoder_positions: usize,
    /// The number of layers of the decoder.
    pub decoder_layers: usize,
    /// The inner width of the decoder's feed-forward layers.
    pub decoder_inner: usize,
    /// The number of position embeddings of the decoder.
    pub positions: usize,
    /// The number of tokens, begin, end and pad tokens included.
    pub vocabulary_size: usize,
}

/// The config of a captioner's vision encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VisionConfig {
    /// The side of an image, in pixels.
    pub image_size: usize,
    /// The architecture and its sizes. The upstream layout supports only transformers.
    #[serde(rename = "vision")]
    pub backbone: VisionBackbone,
    /// The activation of a transformer's MLPs; unused for a ResNet.
    #[serde(default)]
    pub activation: Activation,
    /// The normalization of pixels.
    #[serde(default)]
    pub normalization: Normalization,
}

impl VisionConfig {
    /// An encoder of these sizes with OpenAI's activation and normalization.
    #[must_use]
    pub fn new(image_size: usize, backbone: VisionBackbone) -> Self {
        let (activation, normalization) = Default::default();
        Self { image_size, backbone, activation, normalization }
    }

    /// A description of the differences from OpenAI's model of the same sizes; empty if there are
    /// none. `lora` says which LoRA factors are added, if the weights have factors.
    #[must_use]
    pub fn differences_from_openai(&self, lora: Option<LoraReading>) -> String {
        let Self { backbone, activation, normalization: Normalization { mean, std }, .. } = self;
        let lora = lora.map(|reading| format!("LoRA factors {reading:?}"));
        let heads = (backbone.heads() * 64 != backbone.hidden_width()).then(|| format!("{} heads", backbone.heads()));
        let is_default = self.normalization == Normalization::default();
        let normalization = (!is_default).then(|| format!("mean {mean:?}, std {std:?}"));
        let activation = (*activation != Activation::default()).then(|| format!("{activation:?}"));
        let differences: Vec<String> = [activation, normalization, heads, lora].into_iter().flatten().collect();
        differences.join(", ")
    }

    /// The width of the hidden states; see [`VisionBackbone::hidden_width`].
    #[must_use]
    pub fn width(&self) -> usize {
        self.backbone.hidden_width()
    }

    /// The number of hidden states per image; see [`VisionBackbone::sequence_length`].
    #[must_use]
    pub fn sequence_length(&self) -> usize {
        self.backbone.sequence_length(self.image_size)
    }
}

/// An opened folder in the upstream layout. Its config and weights are consistent.
pub struct UpstreamFolder {
    archive: Archive,
    /// The content of `config.json`.
    config: Value,
    captioner: CaptionerConfig,
    vision: VisionConfig,
    vision_prefix: &'static str,
    /// The tensors of the vision encoder, with OpenAI's names as the new ones.
    vision_mapping: TensorMapping,
    /// For each tensor of encoder and decoder, by upstream name: its name in the file. They differ
    /// only for word embeddings that are read from the tied output projection.
    captioner_names: BTreeMap<String, String>,
    /// The names of tensors that no computation uses.
    unused: Vec<String>,
}

impl UpstreamFolder {
    /// Opens the folder.
    ///
    /// # Errors
    /// A file cannot be read, or a setting or tensor is damaged, not supported or inconsistent; the
    /// message names it and the file.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let path = folder.join("config.json");
        let config: Value = read_json(&path)?;
        let (captioner, mut vision) = config::read(&path, &config)?;
        let preprocessor = folder.join(PREPROCESSOR_CONFIG);
        if preprocessor.is_file() {
            vision.normalization = read_image_processor(&preprocessor)?;
        }
        let archive = Archive::open(folder)?;
        let vision_prefix = names::vision_prefix(&archive);
        let mut vision_mapping = TensorMapping::default();
        let mut captioner_names = BTreeMap::new();
        let mut unused = Vec::new();
        for name in archive.names() {
            match names::tensor_role(name, vision_prefix) {
                TensorRole::Vision(target) => vision_mapping.add(folder, name, target)?,
                TensorRole::Captioner => {
                    captioner_names.insert(name.to_owned(), name.to_owned());
                }
                TensorRole::Unused => unused.push(name.to_owned()),
            }
        }
        // transformers writes only one of two tied tensors to safetensors.
        if archive.shape(LM_HEAD).is_some() {
            captioner_names.entry(WORD_EMBEDDINGS.to_owned()).or_insert_with(|| LM_HEAD.to_owned());
        }
        let upstream =
            Self { archive, config, captioner, vision, vision_prefix, vision_mapping, captioner_names, unused };
        upstream.check_tied_embeddings()?;
        upstream.check_all_shapes()?;
        Ok(upstream)
    }

    /// The content of `config.json`.
    #[must_use]
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The config of encoder and decoder.
    #[must_use]
    pub fn captioner(&self) -> &CaptionerConfig {
        &self.captioner
    }

    /// The captioner's vocabulary: all of CLIP's tokens, or those whose ids `config.json` lists.
    ///
    /// # Errors
    /// The list is malformed, or its size differs from that in `config.json`.
    pub fn vocabulary(&self) -> Result<Vocabulary, Error> {
        let path = self.archive.path().join("config.json");
        config::read_vocabulary(&path, &self.config, self.captioner.vocabulary_size)
    }

    /// The config of the vision encoder.
    #[must_use]
    pub fn vision(&self) -> &VisionConfig {
        &self.vision
    }

    /// The prefix of the names of the vision encoder's tensors in this folder; for
    /// [`vision_to_upstream`].
    #[must_use]
    pub fn vision_prefix(&self) -> &str {
        self.vision_prefix
    }

    /// See [`Archive::sha256`].
    #[must_use]
    pub fn sha256(&self) -> String {
        self.archive.sha256()
    }

    /// The parameters of encoder and decoder under their upstream names, sorted:
    /// `encoder.vis_enc_to_enc_proj.*`, `encoder.encoder.*`, `decoder.transformer.*`. Includes
    /// unknown tensors, so that the caller can report them.
    #[must_use]
    pub fn captioner_tensors(&self) -> Vec<(String, Tensor<'_>)> {
        let names = self.captioner_names.iter();
        names.filter_map(|(name, name_in_file)| Some((name.clone(), self.archive.get(name_in_file)?))).collect()
    }

    /// The parameters of the vision encoder under OpenAI's names, sorted: `visual.*`, without
    /// `visual.proj`.
    ///
    /// # Errors
    /// Tensors do not fit together; the message names them.
    pub fn vision_tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        self.vision_mapping.tensors(&self.archive)
    }

    /// Tensors that no computation uses but that an exact export contains, sorted by name: the
    /// encoder's word embeddings and pooler, causal masks, position numbers, and
    /// `decoder.lm_head.weight`, which equals the decoder's word embeddings.
    #[must_use]
    pub fn unused_tensors(&self) -> Vec<(String, Tensor<'_>)> {
        self.unused.iter().filter_map(|name| Some((name.clone(), self.archive.get(name)?))).collect()
    }

    fn check_tied_embeddings(&self) -> Result<(), Error> {
        match (self.archive.get(LM_HEAD), self.archive.get(WORD_EMBEDDINGS)) {
            (Some(output), Some(words)) if output != words => {
                let problem = format!("differs from {WORD_EMBEDDINGS}; only tied embeddings are supported");
                Err(Error::tensor(self.archive.path(), LM_HEAD, problem))
            }
            _ => Ok(()),
        }
    }

    /// Checks the config against the weights' shapes, so that sizes are bounded by the size of the
    /// files.
    fn check_all_shapes(&self) -> Result<(), Error> {
        let path = self.archive.path();
        let config_error = |error: TooManyLayersError| Error::invalid(&path.join("config.json"), error);
        let mut required = self.captioner.shapes().map_err(config_error)?;
        let mut actual: Shapes = self
            .captioner_names
            .iter()
            .filter_map(|(name, name_in_file)| Some((name.clone(), self.archive.shape(name_in_file)?.to_vec())))
            .collect();
        required.extend(self.vision.shapes().map_err(config_error)?);
        let width = self.vision.width();
        required.extend(["weight", "bias"].map(|part| (format!("visual.ln_post.{part}"), vec![width])));
        actual.extend(self.vision_mapping.shapes(&self.archive)?);
        check_shapes(path, &required, &actual)
    }
}

#[cfg(test)]
mod tests;
