//! A model folder: a captioner and what it needs to see and to speak, as checkpoints and imports hold them.
//!
//! | file | what is in it |
//! |---|---|
//! | `models.json` | [`Manifest`]: vocabulary, architectures, and where the vision tower is |
//! | `captioner.safetensors` | encoder and decoder under the published names |
//! | `vision.safetensors` | in imports: the vision tower under OpenAI's names |
//! | `released.safetensors`, `config.json` | in imports: what no computation uses, for an exact export |
//!
//! A vision tower that was never trained stays in the file that it was read from; the manifest names that file and its hash.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::file::read_json;
use crate::{
    Archive, CaptionerArchitecture, Clip, Dtype, Error, Tensor, VISION_PREFIX, VisionArchitecture, config_json,
    vision_to_released,
};

/// Raised when older programs cannot read newer folders.
const FORMAT: u32 = 1;
/// File names in a model folder.
pub const MANIFEST: &str = "models.json";
/// See [`MANIFEST`].
pub const CAPTIONER: &str = "captioner.safetensors";
/// See [`MANIFEST`].
pub const VISION: &str = "vision.safetensors";
/// See [`MANIFEST`].
pub const RELEASED: &str = "released.safetensors";
/// See [`MANIFEST`].
pub const CONFIG: &str = "config.json";

/// What a model folder holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// What the captioner's tokens are.
    pub vocabulary: Vocabulary,
    /// Its sizes.
    pub captioner: CaptionerArchitecture,
    /// What it sees through.
    pub vision: VisionTower,
}

/// What a captioner's tokens are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// CLIP's, then a pad.
    Full,
    /// These of CLIP's, ascending and without begin and end, numbered without gaps; then begin, end and pad.
    Tokens(Vec<u16>),
}

/// A vision tower in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionTower {
    /// Its sizes.
    pub architecture: VisionArchitecture,
    /// A safetensors file of the folder, or the path of CLIP weights elsewhere.
    pub path: PathBuf,
    /// SHA-256 of the latter.
    #[serde(default)]
    pub sha256: Option<String>,
    /// In imports: what stood before the names of its tensors.
    #[serde(default)]
    pub published_prefix: Option<String>,
}

impl Manifest {
    /// Of a captioner, its tokens and its tower.
    #[must_use]
    pub fn new(vocabulary: Vocabulary, captioner: CaptionerArchitecture, vision: VisionTower) -> Self {
        Self { format: FORMAT, vocabulary, captioner, vision }
    }

    /// Writes it to `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST);
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::format(&path, error))?;
        std::fs::write(&path, text).map_err(Error::file(&path))
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        if self.format != FORMAT {
            let problem = format!("it has format {}, this program reads {FORMAT}", self.format);
            return Err(Error::format(path, problem));
        }
        let ascending = |tokens: &Vec<u16>| tokens.windows(2).all(|pair| pair[0] < pair[1]);
        match &self.vocabulary {
            Vocabulary::Tokens(tokens) if !ascending(tokens) => Err(Error::setting(path, "vocabulary", "must ascend")),
            _ => Ok(()),
        }
    }
}

/// An opened model folder.
pub struct Folder {
    path: PathBuf,
    manifest: Manifest,
    captioner: Archive,
}

impl Folder {
    /// Opens the folder `path`.
    ///
    /// # Errors
    /// It is no model folder.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let manifest_path = path.join(MANIFEST);
        if !manifest_path.is_file() {
            let problem =
                format!("is no model folder: there is no {MANIFEST} (`worker import` makes one of a published folder)");
            return Err(Error::format(path, problem));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let captioner = Archive::open(&path.join(CAPTIONER))?;
        Ok(Self { path: path.to_owned(), manifest, captioner })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Parameters of encoder and decoder, under the published names.
    #[must_use]
    pub fn captioner(&self) -> Vec<(String, Tensor<'_>)> {
        self.captioner.tensors()
    }

    /// Opens the vision tower.
    ///
    /// # Errors
    /// It is not where the manifest says, or not what it was.
    pub fn vision(&self) -> Result<VisionWeights, Error> {
        let VisionTower { path, sha256, .. } = &self.manifest.vision;
        let Some(sha256) = sha256 else {
            if path.components().count() != 1 {
                return Err(Error::setting(&self.path.join(MANIFEST), "vision.path", "must be a file of the folder"));
            }
            return Archive::open(&self.path.join(path)).map(VisionWeights::Own);
        };
        let archive = Archive::open(path)?;
        let found = archive.sha256();
        if found != *sha256 {
            let problem = format!("has SHA-256 {found}, {} was trained with {sha256}", self.path.display());
            return Err(Error::format(path, problem));
        }
        // Another folder's tower, or a whole CLIP.
        let tower_alone = archive.names().all(|name| name.starts_with("visual."));
        if tower_alone { Ok(VisionWeights::Own(archive)) } else { Clip::open(path).map(VisionWeights::Elsewhere) }
    }

    /// What an import kept for an exact export: the published configuration and the tensors that no computation uses.
    ///
    /// # Errors
    /// They are there but cannot be read.
    pub fn released(&self) -> Result<Option<(serde_json::Value, Archive)>, Error> {
        let (config, tensors) = (self.path.join(CONFIG), self.path.join(RELEASED));
        if !config.is_file() || !tensors.is_file() {
            return Ok(None);
        }
        Ok(Some((read_json(&config)?, Archive::open(&tensors)?)))
    }
}

/// The file of a vision tower.
pub enum VisionWeights {
    /// Of a model folder, under OpenAI's names.
    Own(Archive),
    /// CLIP weights that other programs wrote.
    Elsewhere(Clip),
}

impl VisionWeights {
    /// Its tensors under OpenAI's names, perhaps with those of a text tower beside them.
    ///
    /// # Errors
    /// They are malformed.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        match self {
            Self::Own(archive) => Ok(archive.tensors()),
            Self::Elsewhere(clip) => clip.tensors(),
        }
    }

    /// SHA-256 of the file.
    #[must_use]
    pub fn sha256(&self) -> String {
        match self {
            Self::Own(archive) => archive.sha256(),
            Self::Elsewhere(clip) => clip.sha256(),
        }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(archive) => archive.path(),
            Self::Elsewhere(clip) => clip.path(),
        }
    }
}

impl Folder {
    /// The published layout of this folder's captioner: config.json and every tensor. Of an import it is what was imported,
    /// bit by bit; of a captioner that was trained here, what no computation uses is zero.
    ///
    /// # Errors
    /// The vision tower has no place in that layout, or a file cannot be read.
    pub fn to_released<'a>(
        &'a self,
        vision: &'a VisionWeights,
        kept: Option<&'a (serde_json::Value, Archive)>,
    ) -> Result<(serde_json::Value, Vec<(String, Tensor<'a>)>), Error> {
        let needed: Vec<_> = vision.tensors()?.into_iter().filter(|(name, _)| in_tower(name)).collect();
        let mut tensors = self.captioner();
        let prefix = self.manifest.vision.published_prefix.as_deref().unwrap_or(VISION_PREFIX);
        tensors.extend(vision_to_released(needed, prefix)?);
        let config = match kept {
            Some((config, unused)) => {
                tensors.extend(unused.tensors());
                config.clone()
            }
            None => {
                tensors.extend(self.unused());
                config_json(&self.manifest.captioner, &self.manifest.vision.architecture)
            }
        };
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok((config, tensors))
    }

    /// What the published layout has besides: the output, which is tied to the token embedding, and parts of the BERT that
    /// take no part.
    fn unused(&self) -> Vec<(String, Tensor<'_>)> {
        let width = self.manifest.captioner.width;
        let zeros = |name: &str, shape: Vec<usize>| {
            let bytes = vec![0; shape.iter().product::<usize>() * Dtype::F32.size()];
            (format!("encoder.encoder.{name}"), Tensor { dtype: Dtype::F32, shape, bytes: bytes.into() })
        };
        let output = self.captioner.get("decoder.transformer.wte.weight");
        output
            .map(|tensor| ("decoder.lm_head.weight".to_owned(), tensor))
            .into_iter()
            .chain([
                zeros("embeddings.word_embeddings.weight", vec![1, width]),
                zeros("pooler.dense.weight", vec![width, width]),
                zeros("pooler.dense.bias", vec![width]),
            ])
            .collect()
    }
}

/// Whether a tensor of a CLIP is part of the tower that the published layout has: it ends with the last layer norm.
fn in_tower(name: &str) -> bool {
    name.starts_with("visual.") && name != "visual.proj"
}
