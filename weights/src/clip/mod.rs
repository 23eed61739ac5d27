//! CLIP (Radford et al. 2021) and what has its shape, such as PAC-S: in OpenAI's layout or Hugging Face's, read under OpenAI's
//! names.

mod architecture;
pub(crate) mod names;

use std::path::Path;

use serde_json::{Value, json};

pub use architecture::{Architecture, Text, Vision};

use crate::archive::Archive;
use crate::error::Error;
use crate::file::read_json;
use crate::renaming::{Renamed, Renaming};
use crate::settings::Section;
use crate::shapes::compare;
use crate::tensor::Tensor;

/// The weights of a CLIP. Its sizes are found from the shapes of its tensors, as OpenAI's `build_model` does.
pub struct Clip {
    archive: Archive,
    renaming: Renaming,
    architecture: Architecture,
}

impl Clip {
    /// Opens a file or folder as [`Archive::open`] does.
    ///
    /// # Errors
    /// As [`Archive::open`], and where the tensors are not those of a CLIP, the one that does not fit.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let (layout, renaming) = rename(&archive)?;
        let shapes = renaming.shapes(&archive)?;
        let architecture =
            Architecture::from_shapes(&shapes).map_err(|(tensor, problem)| Error::tensor(path, &tensor, problem))?;
        if layout == Layout::HuggingFace {
            check_settings(path, &architecture)?;
        }
        let needed = architecture.shapes().map_err(|problem| Error::format(path, problem))?;
        compare(path, &needed, &shapes)?;
        Ok(Self { archive, renaming, architecture })
    }

    /// Opens a file with OpenAI's names whose sizes are known: shapes do not tell how many heads a tower has.
    ///
    /// # Errors
    /// As [`Archive::open`], and where the tensors are not those of `architecture`.
    pub fn of(path: &Path, architecture: Architecture) -> Result<Self, Error> {
        let archive = Archive::open(path)?;
        let (_, renaming) = rename(&archive)?;
        let needed = architecture.shapes().map_err(|problem| Error::format(path, problem))?;
        compare(path, &needed, &renaming.shapes(&archive)?)?;
        Ok(Self { archive, renaming, architecture })
    }

    /// Its sizes.
    #[must_use]
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Where it was read.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.archive.path()
    }

    /// See [`Archive::sha256`].
    #[must_use]
    pub fn sha256(&self) -> String {
        self.archive.sha256()
    }

    /// Every parameter under OpenAI's name, sorted by it. What is no parameter (`input_resolution`, `position_ids` and the like)
    /// is left out; what is unknown keeps its name, for the caller to find it too much.
    ///
    /// # Errors
    /// Names tensors that do not fit together.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        self.renaming.tensors(&self.archive)
    }
}

/// Whose names the tensors have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    OpenAi,
    HuggingFace,
}

/// What PyTorch's parallel modules put before every name.
const WRAPPER: &str = "module.";

fn rename(archive: &Archive) -> Result<(Layout, Renaming), Error> {
    let prefix = if archive.names().all(|name| name.starts_with(WRAPPER)) { WRAPPER } else { "" };
    let layout = layout(archive, prefix)?;
    let mut renaming = Renaming::default();
    for name in archive.names() {
        let bare = name.strip_prefix(prefix).unwrap_or(name);
        let renamed = match layout {
            Layout::HuggingFace => names::from_hugging_face(bare),
            Layout::OpenAi if names::is_bookkeeping(bare) => Renamed::Dropped,
            Layout::OpenAi => Renamed::Whole(bare.to_owned()),
        };
        renaming.add(archive.path(), name, renamed)?;
    }
    Ok((layout, renaming))
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

/// Shapes do not tell heads and activations, but Hugging Face's `config.json` does, where there is one beside the weights. A
/// setting that is left out has the value of OpenAI's models.
fn check_settings(weights: &Path, architecture: &Architecture) -> Result<(), Error> {
    let folder = if weights.is_dir() { Some(weights) } else { weights.parent() };
    let Some(path) = folder.map(|folder| folder.join("config.json")).filter(|path| path.is_file()) else {
        return Ok(());
    };
    let config: Value = read_json(&path)?;
    let top = Section::top(&path, &config)?;
    let (Vision::Transformer { heads, .. } | Vision::ResNet { heads, .. }) = architecture.vision;
    for (tower, heads) in [("vision_config", heads), ("text_config", architecture.text.heads)] {
        if top.get(tower).is_none() {
            continue;
        }
        let settings = top.section(tower)?;
        settings.require("hidden_act", &[json!("quick_gelu")])?;
        settings.require("layer_norm_eps", &[json!(1e-5)])?;
        settings.require("num_attention_heads", &[json!(heads)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
