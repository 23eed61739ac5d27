//! CLIP (Radford et al. 2021) and models of the same structure, such as PAC-S and OpenCLIP's: read
//! from the layouts of OpenAI, OpenCLIP or Hugging Face, under OpenAI's names.
//!
//! | module | content |
//! |---|---|
//! | `config` | a CLIP's config, and its derivation from the shapes of tensors |
//! | `conventions` | the settings of a CLIP that its tensors do not show |
//! | `config_files` | reads these settings from configuration files beside the weights |
//! | `names` | converts names between Hugging Face's layout and OpenAI's |
//! | `lora` | LoRA factors, and adding them to weights |

mod config;
pub(crate) mod config_files;
mod conventions;
mod lora;
pub(crate) mod names;

use std::path::Path;

pub use config::{ClipConfig, TextConfig, VisionBackbone};
pub use conventions::{Activation, Conventions, Family, LoraReading, Normalization};
pub use lora::{LORA_ALPHA, LoraConfig, LoraTarget, is_lora_factor, lora_factor_names};
use lora::{LoraError, LoraFactors};

use crate::archive::Archive;
use crate::error::Error;
use crate::shapes::{Shapes, check_shapes};
use crate::tensor::Tensor;
use crate::tensor_mapping::{TensorMapping, TensorTarget};

/// An opened CLIP: its weights and its config. If the config is not given, its sizes are derived
/// from the tensors' shapes, as in OpenAI's `build_model`.
pub struct ClipWeights {
    archive: Archive,
    /// The parameters, except for the LoRA factors.
    mapping: TensorMapping,
    factors: LoraFactors,
    lora: LoraReading,
    config: ClipConfig,
    /// Where activation, normalization and heads were taken from, for messages.
    conventions_source: String,
}

impl ClipWeights {
    /// Opens a file or folder as [`Archive::open`] does. Settings that tensors do not show are
    /// taken from `conventions`, otherwise from the configuration beside the weights; for OpenAI's
    /// own files they are known. If `conventions` is complete, no configuration is read.
    ///
    /// # Errors
    /// As [`Archive::open`]; a tensor is not one of a CLIP; or a setting is unknown.
    pub fn open(path: &Path, conventions: &Conventions) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let MappedTensors { layout, mapping, factors } = map_tensors(&archive)?;
        let shapes = mapping.shapes(&archive)?;
        let mut config =
            ClipConfig::from_shapes(&shapes).map_err(|error| Error::tensor(path, &error.tensor, error.problem))?;
        // The configuration beside the weights is read only if it is needed: it may belong to
        // another model.
        let (known_conventions, source) = if is_openai_file(&archive) {
            (Conventions::openai(), "OpenAI's own file".to_owned())
        } else if conventions.are_complete() {
            (Conventions::default(), String::new())
        } else {
            let found = config_files::conventions_beside(path, layout, &config)?;
            found.map(|(conventions, file)| (conventions, file.display().to_string())).unwrap_or_default()
        };
        let is_set_by_user = !Conventions { lora: None, ..conventions.clone() }.is_empty();
        let conventions_source = if is_set_by_user { "the run file or the command line".to_owned() } else { source };
        conventions.or(&known_conventions.or(&Conventions::default())).complete(path, &mut config)?;
        let required = config.shapes().map_err(|problem| Error::invalid(path, problem))?;
        check_shapes(path, &required, &shapes)?;
        let lora = conventions.lora.unwrap_or_default();
        let clip = Self { archive, mapping, factors, lora, config, conventions_source };
        clip.check_factors(&required)?;
        Ok(clip)
    }

    /// Opens a file with OpenAI's names and a known config. Adds all of its LoRA factors.
    ///
    /// # Errors
    /// As [`Archive::open`]; or the tensors do not fit `config`.
    pub fn open_with_config(path: &Path, config: ClipConfig) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let MappedTensors { mapping, factors, .. } = map_tensors(&archive)?;
        let required = config.shapes().map_err(|problem| Error::invalid(path, problem))?;
        check_shapes(path, &required, &mapping.shapes(&archive)?)?;
        let (lora, conventions_source) = (LoraReading::Merged, "the run that trained it".to_owned());
        let clip = Self { archive, mapping, factors, lora, config, conventions_source };
        clip.check_factors(&required)?;
        Ok(clip)
    }

    /// Checks that each LoRA factor belongs to an existing weight.
    fn check_factors(&self, required: &Shapes) -> Result<(), Error> {
        match self.factors.added_factors(LoraReading::Merged).find(|(weight, _)| !required.contains_key(*weight)) {
            Some((weight, _)) => {
                Err(Error::tensor(self.path(), weight, "has LoRA factors, but is not a weight of the model"))
            }
            None => Ok(()),
        }
    }

    /// The alpha of the LoRA factors.
    fn alpha(&self) -> Result<f64, Error> {
        lora::read_alpha(|name| self.archive.get(name)).map_err(|error| Error::tensor(self.path(), LORA_ALPHA, error))
    }

    /// Where activation, normalization and heads were taken from, for messages.
    #[must_use]
    pub fn conventions_source(&self) -> &str {
        &self.conventions_source
    }

    /// A description of the config for messages, in two lines.
    #[must_use]
    pub fn description(&self) -> [String; 2] {
        let ClipConfig { vision, text, activation, normalization, .. } = &self.config;
        let encoder = match vision {
            VisionBackbone::Transformer { patch_size, width, layers, heads } => {
                format!("vision transformer: {layers} layers of {width}, {heads} heads, patches of {patch_size} pixels")
            }
            VisionBackbone::ResNet { blocks, width, heads } => {
                format!("modified ResNet: {blocks:?} blocks, {width} channels at first, pooled by {heads} heads")
            }
        };
        let activation = match activation {
            Activation::QuickGelu => "quick_gelu",
            Activation::Gelu => "gelu",
        };
        let Normalization { mean, std } = normalization;
        let lora = match self.lora() {
            None => "",
            Some(LoraReading::AsReleased) => "; LoRA factors of its MLPs left out, as in PAC-S++'s own scorer",
            Some(LoraReading::Merged) => "; all LoRA factors added",
        };
        let TextConfig { width, layers, heads, context_length, .. } = text;
        [
            format!(
                "{encoder}; text transformer: {layers} layers of {width}, {heads} heads, {context_length} CLIP tokens"
            ),
            format!(
                "{activation}, mean {mean:?}, std {std:?}, text pooled at its end token{lora} (source: {}); SHA-256 {}",
                self.conventions_source,
                self.sha256()
            ),
        ]
    }

    /// Which LoRA factors of the file are added to its weights; none if the file has no factors.
    #[must_use]
    pub fn lora(&self) -> Option<LoraReading> {
        (!self.factors.is_empty()).then_some(self.lora)
    }

    /// The config of the model.
    #[must_use]
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// The path of the file or folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// Whether both models compute the same: tensors, configs and LoRA readings are equal.
    #[must_use]
    pub fn is_same_model(&self, other: &Self) -> bool {
        let has_same_config = self.config == other.config && self.lora() == other.lora();
        has_same_config && self.sha256() == other.sha256()
    }

    /// See [`Archive::sha256`].
    #[must_use]
    pub fn sha256(&self) -> String {
        self.archive.sha256()
    }

    /// All parameters under OpenAI's names, sorted, with LoRA factors added as [`lora`](Self::lora)
    /// says. Leaves out tensors that are not parameters (`input_resolution`, `position_ids` and so
    /// on). Unknown tensors keep their names, so that the caller can report them.
    ///
    /// # Errors
    /// Tensors do not fit together; the message names them.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        let mut tensors = self.mapping.tensors(&self.archive)?;
        let alpha = self.alpha()?;
        for (weight, pair) in self.factors.added_factors(self.lora) {
            let lora_error = |error: LoraError| Error::tensor(self.path(), weight, error);
            let Ok(index) = tensors.binary_search_by(|(name, _)| name.as_str().cmp(weight)) else { continue };
            let factors = pair.read(|name| self.archive.get(name)).map_err(lora_error)?;
            tensors[index].1 = lora::merge(&tensors[index].1, &factors, alpha).map_err(lora_error)?;
        }
        Ok(tensors)
    }

    /// All parameters under OpenAI's names, without LoRA factors added, and the factors under
    /// loralib's names. B includes alpha, so that loralib computes the same weights with its
    /// default alpha.
    ///
    /// # Errors
    /// As [`ClipWeights::tensors`].
    pub fn tensors_and_factors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        let mut tensors = self.mapping.tensors(&self.archive)?;
        let alpha = self.alpha()?;
        for (weight, pair) in self.factors.added_factors(LoraReading::Merged) {
            let lora_error = |error: LoraError| Error::tensor(self.path(), weight, error);
            let [a, b] = pair.read(|name| self.archive.get(name)).map_err(lora_error)?;
            let b = lora::scale_by_alpha(&b, alpha).map_err(lora_error)?;
            tensors.extend(lora_factor_names(weight).into_iter().zip([a, b]));
        }
        Ok(tensors)
    }
}

/// The naming scheme of a file's tensors.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NameLayout {
    /// OpenAI's names, which OpenCLIP also uses.
    OpenAi,
    /// The names of transformers' `CLIPModel`.
    HuggingFace,
}

/// The prefix that `torch.nn.DataParallel` adds to all names.
const DATA_PARALLEL_PREFIX: &str = "module.";

/// The mapping of a file's tensors to OpenAI's names.
struct MappedTensors {
    layout: NameLayout,
    mapping: TensorMapping,
    factors: LoraFactors,
}

fn map_tensors(archive: &Archive) -> Result<MappedTensors, Error> {
    let prefix =
        if archive.names().all(|name| name.starts_with(DATA_PARALLEL_PREFIX)) { DATA_PARALLEL_PREFIX } else { "" };
    let layout = detect_layout(archive, prefix)?;
    let (mut mapping, mut factors) = (TensorMapping::default(), LoraFactors::default());
    for name in archive.names() {
        let bare_name = name.strip_prefix(prefix).unwrap_or(name);
        let bare_name = if layout == NameLayout::OpenAi { names::from_open_clip(bare_name) } else { bare_name };
        if let Some(weight) = lora::weight_of(bare_name).filter(|_| layout == NameLayout::OpenAi) {
            factors.add(weight, name);
            continue;
        }
        let target = match layout {
            NameLayout::HuggingFace => names::from_hugging_face(bare_name),
            NameLayout::OpenAi if names::is_buffer(bare_name) || bare_name == LORA_ALPHA => TensorTarget::Dropped,
            NameLayout::OpenAi => TensorTarget::Renamed(bare_name.to_owned()),
        };
        mapping.add(archive.path(), name, target)?;
    }
    Ok(MappedTensors { layout, mapping, factors })
}

/// Whether the file is one that OpenAI published: its TorchScript archives contain these scalars
/// beside the parameters, which no other program writes. OpenAI's `build_model` removes them.
fn is_openai_file(archive: &Archive) -> bool {
    ["input_resolution", "context_length", "vocab_size"].iter().all(|name| archive.shape(name).is_some())
}

fn detect_layout(archive: &Archive, prefix: &str) -> Result<NameLayout, Error> {
    let has = |name: &str| archive.shape(&format!("{prefix}{name}")).is_some();
    if has("vision_model.embeddings.patch_embedding.weight") {
        Ok(NameLayout::HuggingFace)
    } else if has("visual.conv1.weight") {
        Ok(NameLayout::OpenAi)
    } else {
        let problem =
            "is not a CLIP: it has neither visual.conv1.weight nor vision_model.embeddings.patch_embedding.weight";
        Err(Error::invalid(archive.path(), problem))
    }
}

#[cfg(test)]
mod tests;
