//! CLIP (Radford et al. 2021) and models of the same structure, such as PAC-S and OpenCLIP's: read
//! from the layouts of OpenAI, OpenCLIP or Hugging Face, under OpenAI's names.

mod architecture;
pub(crate) mod config;
mod conventions;
mod lora;
pub(crate) mod names;

use std::path::Path;

pub use architecture::{Architecture, Text, Vision};
pub use conventions::{Activation, Conventions, Family, LoraReading, Normalization};
use lora::Factors;
pub use lora::{LORA_ALPHA, Lora, LoraTarget, is_lora_factor, lora_factor_names};

use crate::archive::Archive;
use crate::error::Error;
use crate::renaming::{Renamed, Renaming};
use crate::shapes::{Shapes, compare};
use crate::tensor::Tensor;

/// The weights of a CLIP. The sizes are derived from the tensors' shapes, as in OpenAI's
/// `build_model`.
pub struct Clip {
    archive: Archive,
    renaming: Renaming,
    factors: Factors,
    lora: LoraReading,
    architecture: Architecture,
    source: String,
}

impl Clip {
    /// Opens a file or folder as [`Archive::open`] does. Properties that tensors do not show are
    /// taken from `said`, otherwise from the configuration beside the weights; for OpenAI's own
    /// files they are known. If `said` is complete, no configuration is read.
    ///
    /// # Errors
    /// As [`Archive::open`]; a tensor is not one of a CLIP; or a property is unknown.
    pub fn open(path: &Path, said: &Conventions) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let Tensors { layout, renaming, factors } = rename(&archive)?;
        let shapes = renaming.shapes(&archive)?;
        let mut architecture =
            Architecture::from_shapes(&shapes).map_err(|(tensor, problem)| Error::tensor(path, &tensor, problem))?;
        // A folder of weights may have the configuration of another model.
        let (found, source) = if is_openais_own(&archive) {
            (Conventions::openai(), "OpenAI's own file".to_owned())
        } else if said.are_complete() {
            (Conventions::default(), String::new())
        } else {
            let beside = config::beside(path, layout, &architecture)?;
            beside.map(|(found, config)| (found, config.display().to_string())).unwrap_or_default()
        };
        let by_user = !Conventions { lora: None, ..said.clone() }.is_empty();
        let source = if !by_user { source } else { "the run file or the command line".to_owned() };
        said.over(&found.over(&Conventions::default())).complete(path, &mut architecture)?;
        let needed = architecture.shapes().map_err(|problem| Error::format(path, problem))?;
        compare(path, &needed, &shapes)?;
        let lora = said.lora.unwrap_or_default();
        let clip = Self { archive, renaming, factors, lora, architecture, source };
        clip.check_factors(&needed)?;
        Ok(clip)
    }

    /// Opens a file with OpenAI's names and a known config. Adds all of its LoRA factors.
    ///
    /// # Errors
    /// As [`Archive::open`]; or the tensors do not fit `architecture`.
    pub fn of(path: &Path, architecture: Architecture) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let Tensors { renaming, factors, .. } = rename(&archive)?;
        let needed = architecture.shapes().map_err(|problem| Error::format(path, problem))?;
        compare(path, &needed, &renaming.shapes(&archive)?)?;
        let (lora, source) = (LoraReading::Merged, "the run that trained it".to_owned());
        let clip = Self { archive, renaming, factors, lora, architecture, source };
        clip.check_factors(&needed)?;
        Ok(clip)
    }

    /// Checks that each LoRA factor belongs to an existing weight.
    fn check_factors(&self, needed: &Shapes) -> Result<(), Error> {
        match self.factors.added(LoraReading::Merged).find(|(weight, _)| !needed.contains_key(*weight)) {
            Some((weight, _)) => {
                Err(Error::tensor(self.path(), weight, "has LoRA factors, and is no weight of the model"))
            }
            None => Ok(()),
        }
    }

    /// The alpha of its LoRA factors.
    fn alpha(&self) -> Result<f64, Error> {
        lora::alpha(|name| self.archive.get(name)).map_err(|problem| Error::tensor(self.path(), LORA_ALPHA, problem))
    }

    /// The source of its activation, normalization and heads.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A description of its config, in lines for people.
    #[must_use]
    pub fn description(&self) -> [String; 2] {
        let Architecture { vision, text, activation, normalization, .. } = &self.architecture;
        let tower = match vision {
            Vision::Transformer { patch_size, width, layers, heads } => {
                format!("vision transformer: {layers} layers of {width}, {heads} heads, patches of {patch_size} pixels")
            }
            Vision::ResNet { blocks, width, heads } => {
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
            Some(LoraReading::AsReleased) => "; LoRA factors of its MLPs left out, as the released scorer does",
            Some(LoraReading::Merged) => "; all LoRA factors added",
        };
        let Text { width, layers, heads, context_length, .. } = text;
        [
            format!(
                "{tower}; text transformer: {layers} layers of {width}, {heads} heads, {context_length} CLIP tokens"
            ),
            format!(
                "{activation}, mean {mean:?}, std {std:?}, text pooled at its end token{lora}, as {} says; SHA-256 {}",
                self.source,
                self.sha256()
            ),
        ]
    }

    /// Which of its LoRA factors are added; none if it has none.
    #[must_use]
    pub fn lora(&self) -> Option<LoraReading> {
        (!self.factors.is_empty()).then_some(self.lora)
    }

    /// The config of the model.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The path that it was read from.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// Whether both models compute the same.
    #[must_use]
    pub fn is_same_model(&self, other: &Self) -> bool {
        let same = self.architecture == other.architecture && self.lora() == other.lora();
        same && self.sha256() == other.sha256()
    }

    /// See [`Archive::sha256`].
    #[must_use]
    pub fn sha256(&self) -> String {
        self.archive.sha256()
    }

    /// All parameters under OpenAI's names, sorted, with LoRA factors added as the reading says.
    /// Leaves out tensors that are no parameters (`input_resolution`, `position_ids` and so on).
    /// Unknown tensors keep their names, so that the caller can report them.
    ///
    /// # Errors
    /// Tensors do not fit together; the message names them.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        let mut tensors = self.renaming.tensors(&self.archive)?;
        let alpha = self.alpha()?;
        for (weight, pair) in self.factors.added(self.lora) {
            let problem = |problem: String| Error::tensor(self.path(), weight, problem);
            let Ok(place) = tensors.binary_search_by(|(name, _)| name.as_str().cmp(weight)) else { continue };
            let factors = pair.read(|name| self.archive.get(name)).map_err(problem)?;
            tensors[place].1 = lora::merge(&tensors[place].1, &factors, alpha).map_err(problem)?;
        }
        Ok(tensors)
    }

    /// All parameters under OpenAI's names, without LoRA factors added, and the factors under their
    /// published names. B includes alpha, so that loralib computes the same weights with its
    /// default alpha.
    ///
    /// # Errors
    /// As [`Clip::tensors`].
    pub fn tensors_and_factors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        let mut tensors = self.renaming.tensors(&self.archive)?;
        let alpha = self.alpha()?;
        for (weight, pair) in self.factors.added(LoraReading::Merged) {
            let problem = |problem: String| Error::tensor(self.path(), weight, problem);
            let [a, b] = pair.read(|name| self.archive.get(name)).map_err(problem)?;
            let b = lora::scaled(&b, alpha).map_err(problem)?;
            tensors.extend(lora_factor_names(weight).into_iter().zip([a, b]));
        }
        Ok(tensors)
    }
}

/// The layout of the tensors' names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    OpenAi,
    HuggingFace,
}

/// The prefix that PyTorch's parallel modules add to all names.
const WRAPPER: &str = "module.";

/// The tensors of a file under OpenAI's names.
struct Tensors {
    layout: Layout,
    renaming: Renaming,
    factors: Factors,
}

fn rename(archive: &Archive) -> Result<Tensors, Error> {
    let prefix = if archive.names().all(|name| name.starts_with(WRAPPER)) { WRAPPER } else { "" };
    let layout = layout(archive, prefix)?;
    let (mut renaming, mut factors) = (Renaming::default(), Factors::default());
    for name in archive.names() {
        let bare = name.strip_prefix(prefix).unwrap_or(name);
        let bare = if layout == Layout::OpenAi { names::from_open_clip(bare) } else { bare };
        if let Some(weight) = lora::weight_of(bare).filter(|_| layout == Layout::OpenAi) {
            factors.add(weight, name);
            continue;
        }
        let renamed = match layout {
            Layout::HuggingFace => names::from_hugging_face(bare),
            Layout::OpenAi if names::is_bookkeeping(bare) || bare == LORA_ALPHA => Renamed::Dropped,
            Layout::OpenAi => Renamed::Whole(bare.to_owned()),
        };
        renaming.add(archive.path(), name, renamed)?;
    }
    Ok(Tensors { layout, renaming, factors })
}

/// Whether it is a file of OpenAI: a TorchScript archive with these numbers beside the parameters,
/// which no other program writes. OpenAI's `build_model` removes them.
fn is_openais_own(archive: &Archive) -> bool {
    ["input_resolution", "context_length", "vocab_size"].iter().all(|name| archive.shape(name).is_some())
}

fn layout(archive: &Archive, prefix: &str) -> Result<Layout, Error> {
    let has = |name: &str| archive.shape(&format!("{prefix}{name}")).is_some();
    if has("vision_model.embeddings.patch_embedding.weight") {
        Ok(Layout::HuggingFace)
    } else if has("visual.conv1.weight") {
        Ok(Layout::OpenAi)
    } else {
        let problem =
            "is no CLIP: it has neither visual.conv1.weight nor vision_model.embeddings.patch_embedding.weight";
        Err(Error::format(archive.path(), problem))
    }
}

#[cfg(test)]
mod tests;
