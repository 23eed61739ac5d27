//! A model folder: a captioner with its vision encoder and vocabulary, as in checkpoints and
//! imports.
//!
//! | file | what is in it |
//! |---|---|
//! | `models.json` | [`Manifest`]: vocabulary, architectures, and where the vision tower is |
//! | `captioner.safetensors` | encoder and decoder under the published names |
//! | `evaluator.safetensors` | in checkpoints of runs that train their evaluator: both its towers under OpenAI's names, and its LoRA factors |
//! | `vision.safetensors` | in imports: the vision tower under OpenAI's names |
//! | `released.safetensors`, `config.json` | in imports: what no computation uses, for an exact export |
//!
//! A vision encoder that was never trained stays in the file that it was read from; the manifest
//! has the path and hash of that file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::captioner::{WRAPPED_VISION_PREFIX, complete};
use crate::clip::{LoraReading, is_lora_factor};
use crate::file::read_json;
use crate::shapes::compare;
use crate::{
    Architecture, Archive, CaptionerArchitecture, Clip, Conventions, Dtype, Error, Tensor, VISION_PREFIX, Vision,
    VisionArchitecture, config_json, vision_to_released,
};

/// The version of the format; incremented when older programs cannot read newer folders.
const FORMAT: u32 = 1;
/// The number of CLIP's tokens, and a pad token.
const FULL: usize = 49_409;
/// The file names in a model folder.
pub const MANIFEST: &str = "models.json";
/// See [`MANIFEST`].
pub const CAPTIONER: &str = "captioner.safetensors";
/// See [`MANIFEST`].
pub const EVALUATOR: &str = "evaluator.safetensors";
/// See [`MANIFEST`].
pub const VISION: &str = "vision.safetensors";
/// See [`MANIFEST`].
pub const RELEASED: &str = "released.safetensors";
/// See [`MANIFEST`].
pub const CONFIG: &str = "config.json";

/// The content of a model folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The captioner's tokens.
    pub vocabulary: Vocabulary,
    /// The captioner's config.
    pub captioner: CaptionerArchitecture,
    /// The captioner's vision encoder.
    pub vision: VisionTower,
    /// The evaluator of the run, in [`EVALUATOR`]; none if it is an unchanged file elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<Evaluator>,
}

/// An evaluator that a run trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluator {
    /// Its config.
    pub architecture: Architecture,
    /// Its tokens.
    pub vocabulary: Vocabulary,
}

/// The tokens of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// All of CLIP's tokens, then a pad token.
    Full,
    /// These of CLIP's tokens, ascending and without begin and end tokens, renumbered without gaps;
    /// then begin, end and pad tokens.
    Tokens(Vec<u16>),
}

impl Vocabulary {
    /// The number of tokens, begin, end and pad tokens included.
    #[must_use]
    pub fn size(&self) -> usize {
        match self {
            Self::Full => FULL,
            Self::Tokens(tokens) => tokens.len().saturating_add(3),
        }
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Tokens(tokens) if !tokens.windows(2).all(|pair| pair[0] < pair[1]) => Err("must ascend"),
            Self::Tokens(tokens) if tokens.last().is_some_and(|&last| usize::from(last) >= FULL - 3) => {
                Err("must leave begin and end out")
            }
            _ => Ok(()),
        }
    }
}

/// A vision encoder in a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionTower {
    /// Its config.
    pub architecture: VisionArchitecture,
    /// A safetensors file in the folder, or the path of CLIP weights elsewhere.
    pub path: PathBuf,
    /// The SHA-256 of a file elsewhere.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Which of its LoRA factors are added; none if it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraReading>,
    /// In imports: the published prefix of its tensors' names.
    #[serde(default)]
    pub published_prefix: Option<String>,
}

impl Manifest {
    /// The manifest of a captioner with its tokens and vision encoder, and of the evaluator that
    /// was trained with it, if any.
    #[must_use]
    pub fn new(
        vocabulary: Vocabulary,
        captioner: CaptionerArchitecture,
        vision: VisionTower,
        evaluator: Option<Evaluator>,
    ) -> Self {
        Self { format: FORMAT, vocabulary, captioner, vision, evaluator }
    }

    /// Writes the manifest to `folder`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST);
        let text = self.to_json()?;
        let written = File::create(&path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(Error::file(&path))
    }

    /// The manifest as JSON.
    ///
    /// # Errors
    /// A path in it is not Unicode.
    pub fn to_json(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec_pretty(self).map_err(|error| Error::format(Path::new(MANIFEST), error))
    }

    fn check(&self, path: &Path) -> Result<(), Error> {
        if self.format != FORMAT {
            let problem = format!("it has format {}, this program reads {FORMAT}", self.format);
            return Err(Error::format(path, problem));
        }
        let heads = |vision: &Vision| (vision.heads(), vision.hidden_width());
        let evaluator = self.evaluator.as_ref().map(|evaluator| {
            let Architecture { vision, text, .. } = &evaluator.architecture;
            [
                ("evaluator.architecture.vision.heads", heads(vision)),
                ("evaluator.architecture.text.heads", (text.heads, text.width)),
            ]
        });
        let captioner = ("captioner.heads", (self.captioner.heads, self.captioner.width));
        let vision = ("vision.architecture.heads", heads(&self.vision.architecture.vision));
        for (key, (heads, width)) in [captioner, vision].into_iter().chain(evaluator.into_iter().flatten()) {
            if heads == 0 || width % heads != 0 {
                return Err(Error::setting(path, key, format!("{heads} heads cannot share a width of {width}")));
            }
        }
        let tower = &self.vision.architecture;
        if let Vision::Transformer { patch_size, .. } = tower.vision
            && !(1..=tower.image_size).contains(&patch_size)
        {
            let problem = format!("{patch_size} do not fit into an image of {}", tower.image_size);
            return Err(Error::setting(path, "vision.architecture.patch_size", problem));
        }
        if tower.tokens() > self.captioner.encoder_positions || tower.width() != self.captioner.vision_width {
            let (tokens, width) = (tower.tokens(), tower.width());
            let problem = format!("{tokens} hidden states of {width} do not fit the captioner");
            return Err(Error::setting(path, "vision.architecture", problem));
        }
        for vocabulary in std::iter::once(&self.vocabulary).chain(self.evaluator.as_ref().map(|own| &own.vocabulary)) {
            vocabulary.check().map_err(|problem| Error::setting(path, "vocabulary", problem))?;
        }
        let known = self.vocabulary.size();
        if known != self.captioner.vocabulary_size {
            let problem = format!("has {known} tokens; the captioner knows {}", self.captioner.vocabulary_size);
            return Err(Error::setting(path, "vocabulary", problem));
        }
        Ok(())
    }
}

/// Opens an evaluator of a run file: CLIP weights, with `said` for the properties that tensors do
/// not show, or a model folder with its own evaluator. Also returns its tokens.
///
/// # Errors
/// It is neither, or the text encoder's vocabulary does not match.
pub fn open_evaluator(path: &Path, said: &Conventions) -> Result<(Clip, Vocabulary), Error> {
    let manifest_path = path.join(MANIFEST);
    let (clip, vocabulary) = if manifest_path.is_file() {
        if !said.is_empty() {
            return Err(Error::format(
                path,
                "is a model folder, which says how its models compute: take evaluator.clip out",
            ));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let missing = "has no evaluator of its own: name the file that its run named";
        let Evaluator { architecture, vocabulary } = manifest.evaluator.ok_or_else(|| Error::format(path, missing))?;
        (Clip::of(&path.join(EVALUATOR), architecture)?, vocabulary)
    } else {
        (Clip::open(path, said)?, Vocabulary::Full)
    };
    // The pad token is never computed, so it is not counted.
    let (known, needed) = (clip.architecture().text.vocabulary_size, vocabulary.size() - 1);
    if known != needed {
        let problem = format!("its text tower knows {known} tokens, not the {needed} of its vocabulary");
        return Err(Error::format(clip.path(), problem));
    }
    Ok((clip, vocabulary))
}

/// An opened model folder.
pub struct Folder {
    path: PathBuf,
    manifest: Manifest,
    captioner: Archive,
}

/// The last model folder in `path`, or among the checkpoints of a run with that output folder.
fn newest_below(path: &Path) -> Option<PathBuf> {
    let models_in = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.filter(|path| path.join(MANIFEST).is_file()).max()
    };
    models_in(path).or_else(|| models_in(&path.join("checkpoints")))
}

impl Folder {
    /// Opens the folder `path`.
    ///
    /// # Errors
    /// It is not a model folder.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let manifest_path = path.join(MANIFEST);
        if !manifest_path.is_file() {
            let remedy = match newest_below(path) {
                Some(newest) => format!("it holds checkpoints: name one of them, such as {}", newest.display()),
                None => "`worker import` makes one of a published folder".to_owned(),
            };
            return Err(Error::format(path, format!("is no model folder: there is no {MANIFEST} ({remedy})")));
        }
        let manifest: Manifest = read_json(&manifest_path)?;
        manifest.check(&manifest_path)?;
        let captioner = Archive::open(&path.join(CAPTIONER))?;
        let needed = manifest.captioner.shapes().map_err(|problem| Error::format(&manifest_path, problem))?;
        compare(captioner.path(), &needed, &captioner.shapes())?;
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

    /// The parameters of encoder and decoder under the published names.
    #[must_use]
    pub fn captioner(&self) -> Vec<(String, Tensor<'_>)> {
        self.captioner.tensors()
    }

    /// Whether the captioner is untrained: its last layer norm has the initial ones and zeros,
    /// which every optimizer step changes.
    #[must_use]
    pub fn captioner_is_untrained(&self) -> bool {
        let filled_with = |name: &str, value: f32| {
            let tensor = self.captioner.get(name).filter(|tensor| tensor.dtype == Dtype::F32);
            tensor.is_some_and(|tensor| tensor.bytes.chunks_exact(4).all(|bytes| bytes == value.to_le_bytes()))
        };
        filled_with("decoder.transformer.ln_f.weight", 1.0) && filled_with("decoder.transformer.ln_f.bias", 0.0)
    }

    /// Opens the vision encoder.
    ///
    /// # Errors
    /// It is not where the manifest says, or has changed.
    pub fn vision(&self) -> Result<VisionWeights, Error> {
        let VisionTower { path, sha256, .. } = &self.manifest.vision;
        let Some(sha256) = sha256 else {
            if path.components().count() != 1 {
                return Err(Error::setting(&self.path.join(MANIFEST), "vision.path", "must be a file of the folder"));
            }
            let archive = Archive::open(&self.path.join(path))?;
            let has_factors = archive.names().any(is_lora_factor);
            return match &self.manifest.evaluator {
                Some(Evaluator { architecture, .. }) if has_factors => {
                    self.tower_of_clip(Clip::of(archive.path(), architecture.clone())?)
                }
                _ => self.own_tower(archive),
            };
        };
        let archive = Archive::open(path)?;
        let found = archive.sha256();
        if found != *sha256 {
            let problem = format!("has SHA-256 {found}, {} was trained with {sha256}", self.path.display());
            return Err(Error::format(path, problem));
        }
        // With OpenAI's names the encoder can be read as it is; otherwise it is in another layout.
        let lora = self.manifest.vision.lora;
        if archive.shape("visual.conv1.weight").is_some() && lora.is_none() {
            return self.own_tower(archive);
        }
        let VisionArchitecture { activation, normalization, vision, .. } = &self.manifest.vision.architecture;
        let said = Conventions { lora, ..Conventions::of_vision(*activation, *normalization, vision) };
        self.tower_of_clip(Clip::open(path, &said)?)
    }

    /// The encoder of a CLIP whose tensors have other names than the captioner's, or LoRA factors.
    fn tower_of_clip(&self, clip: Clip) -> Result<VisionWeights, Error> {
        if clip.architecture().tower() != self.manifest.vision.architecture {
            let problem = format!("is of another architecture than {} says", self.path.join(MANIFEST).display());
            return Err(Error::format(clip.path(), problem));
        }
        Ok(VisionWeights::Clip(Box::new(clip)))
    }

    /// An encoder with the config in the manifest, in a file that may contain the rest of a CLIP.
    fn own_tower(&self, archive: Archive) -> Result<VisionWeights, Error> {
        let architecture = &self.manifest.vision.architecture;
        let needed = architecture.shapes().map_err(|problem| Error::format(&self.path.join(MANIFEST), problem))?;
        let mut found = archive.shapes();
        found.retain(|name, _| needed.contains_key(name));
        compare(archive.path(), &needed, &found)?;
        Ok(VisionWeights::Own(archive))
    }

    /// The parts of an import for an exact export: the published config, and the tensors that no
    /// computation uses.
    ///
    /// # Errors
    /// They exist but cannot be read.
    pub fn released(&self) -> Result<Option<(serde_json::Value, Archive)>, Error> {
        let (config, tensors) = (self.path.join(CONFIG), self.path.join(RELEASED));
        if !config.is_file() || !tensors.is_file() {
            return Ok(None);
        }
        Ok(Some((read_json(&config)?, Archive::open(&tensors)?)))
    }
}

/// The weights of a vision encoder.
pub enum VisionWeights {
    /// With OpenAI's names, read as they are.
    Own(Archive),
    /// CLIP weights in another layout, or with LoRA factors.
    Clip(Box<Clip>),
}

impl VisionWeights {
    /// The tensors under OpenAI's names; may include those of a text encoder.
    ///
    /// # Errors
    /// They are malformed.
    pub fn tensors(&self) -> Result<Vec<(String, Tensor<'_>)>, Error> {
        match self {
            Self::Own(archive) => Ok(archive.tensors()),
            Self::Clip(clip) => clip.tensors(),
        }
    }

    /// Which of its LoRA factors are added; none if it has none.
    #[must_use]
    pub fn lora(&self) -> Option<LoraReading> {
        match self {
            Self::Own(_) => None,
            Self::Clip(clip) => clip.lora(),
        }
    }

    /// The SHA-256 of the file.
    #[must_use]
    pub fn sha256(&self) -> String {
        match self {
            Self::Own(archive) => archive.sha256(),
            Self::Clip(clip) => clip.sha256(),
        }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Own(archive) => archive.path(),
            Self::Clip(clip) => clip.path(),
        }
    }
}

impl Folder {
    /// The published layout of this folder's captioner: config.json and all tensors. The tensors of
    /// an import are bitwise those that were imported; for a captioner that was trained here,
    /// unused tensors are zero.
    ///
    /// A captioner with a corpus vocabulary keeps it, with the same numbers, and config.json lists
    /// its tokens. Additional rows for the other tokens would change its captions: the output has
    /// no bias that could exclude a token, and every row takes part in the softmax.
    ///
    /// # Errors
    /// The vision encoder is not part of that layout, or a file cannot be read.
    pub fn to_released<'a>(
        &'a self,
        vision: &'a VisionWeights,
        kept: Option<&'a (serde_json::Value, Archive)>,
    ) -> Result<(serde_json::Value, Vec<(String, Tensor<'a>)>), Error> {
        let needed: Vec<_> = vision.tensors()?.into_iter().filter(|(name, _)| in_tower(name)).collect();
        let mut tensors = self.captioner();
        let prefix = self.manifest.vision.published_prefix.as_deref().unwrap_or(VISION_PREFIX);
        tensors.extend(vision_to_released(needed, prefix)?);
        let mut config = match kept {
            Some((config, unused)) => {
                tensors.extend(unused.tensors());
                config.clone()
            }
            None => {
                tensors.extend(self.unused());
                config_json(&self.manifest.captioner, &self.manifest.vision.architecture)
            }
        };
        complete(&mut config, &self.manifest.vocabulary, prefix == WRAPPED_VISION_PREFIX);
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok((config, tensors))
    }

    /// Further tensors of the published layout: the output, which is tied to the token embedding,
    /// and unused parts of the BERT.
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

/// Whether a CLIP's tensor is part of the published layout's encoder, which ends with the last
/// layer norm.
fn in_tower(name: &str) -> bool {
    name.starts_with("visual.") && name != "visual.proj"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::write_shapes;

    fn manifest() -> Manifest {
        let captioner = CaptionerArchitecture {
            vision_width: 8,
            width: 4,
            heads: 2,
            encoder_layers: 1,
            encoder_inner: 6,
            encoder_positions: 9,
            decoder_layers: 1,
            decoder_inner: 10,
            positions: 7,
            vocabulary_size: 5,
        };
        let vision = Vision::Transformer { patch_size: 2, width: 8, layers: 1, heads: 2 };
        let architecture = VisionArchitecture::new(4, vision);
        let vision =
            VisionTower { architecture, path: VISION.into(), sha256: None, lora: None, published_prefix: None };
        Manifest::new(Vocabulary::Tokens(vec![3, 17]), captioner, vision, None)
    }

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest();
        manifest.write(folder.path()).unwrap();
        let shapes = |shapes: crate::Shapes| shapes.into_iter().collect::<Vec<_>>();
        write_shapes(&folder.path().join(CAPTIONER), &shapes(manifest.captioner.shapes().unwrap()));
        write_shapes(&folder.path().join(VISION), &shapes(manifest.vision.architecture.shapes().unwrap()));
        folder
    }

    fn problem(change: impl FnOnce(&mut Manifest)) -> String {
        let folder = folder();
        let mut manifest = manifest();
        change(&mut manifest);
        manifest.write(folder.path()).unwrap();
        let opened = Folder::open(folder.path()).and_then(|folder| folder.vision().map(|_| ()));
        opened.unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = folder();
        let opened = Folder::open(folder.path()).unwrap();
        assert_eq!(*opened.manifest(), manifest());
        assert_eq!(opened.vision().unwrap().tensors().unwrap().len(), 17);
        assert!(opened.released().unwrap().is_none());
    }

    #[test]
    fn an_exported_configuration_says_where_the_code_is_and_which_tokens_are_known() {
        let folder = folder();
        let opened = Folder::open(folder.path()).unwrap();
        let vision = opened.vision().unwrap();
        let (config, _) = opened.to_released(&vision, None).unwrap();
        assert_eq!(config["auto_map"]["AutoModel"], "modeling_dico.DicoCaptioner");
        assert_eq!(config["clip_tokens"], serde_json::json!([3, 17]));
        assert_eq!(config["decoder"]["vocab_size"], 5);
        assert_eq!(config["encoder"].get("vision_model_nested"), None);

        // An import's config and tensors are exported unchanged, and its vision encoder keeps its
        // names.
        let mut manifest = manifest();
        manifest.vision.published_prefix = Some(WRAPPED_VISION_PREFIX.to_owned());
        manifest.write(folder.path()).unwrap();
        let opened = Folder::open(folder.path()).unwrap();
        let unused = [("encoder.encoder.pooler.dense.bias".to_owned(), vec![4])];
        write_shapes(&folder.path().join(RELEASED), &unused);
        let imported = serde_json::json!({ "encoder": { "own": 1 }, "auto_map": { "AutoModel": "theirs.Model" } });
        std::fs::write(folder.path().join(CONFIG), imported.to_string()).unwrap();
        let kept = opened.released().unwrap();
        let (config, tensors) = opened.to_released(&vision, kept.as_ref()).unwrap();
        assert_eq!(config["encoder"], serde_json::json!({ "own": 1, "vision_model_nested": true }));
        assert_eq!(config["auto_map"]["AutoModel"], "modeling_dico.DicoCaptioner");
        let names: Vec<_> = tensors.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"encoder.vision_encoder.vision_model.pre_layrnorm.bias"), "{names:?}");
        assert!(names.contains(&unused[0].0.as_str()), "{names:?}");

        // An invalid config is left unchanged.
        std::fs::write(folder.path().join(CONFIG), "[]").unwrap();
        let (config, _) = opened.to_released(&vision, opened.released().unwrap().as_ref()).unwrap();
        assert_eq!(config, serde_json::json!([]));
    }

    #[test]
    fn a_captioner_is_untrained_while_its_last_layer_norm_is_as_it_began() {
        let folder = folder();
        let open = || Folder::open(folder.path()).unwrap();
        assert!(!open().captioner_is_untrained());
        let ones = 1.0_f32.to_le_bytes().repeat(4);
        let mut bent = ones.clone();
        bent[3] += 1;
        for (weight, bias, is_untrained) in [(&ones, [0; 16], true), (&bent, [0; 16], false), (&ones, [1; 16], false)] {
            let opened = open();
            let mut tensors: Vec<_> =
                opened.captioner().into_iter().map(|(name, tensor)| (name, tensor.into_owned())).collect();
            for (name, tensor) in &mut tensors {
                match name.as_str() {
                    "decoder.transformer.ln_f.weight" => tensor.bytes = weight.clone().into(),
                    "decoder.transformer.ln_f.bias" => tensor.bytes = bias.to_vec().into(),
                    _ => {}
                }
            }
            crate::write_safetensors(&folder.path().join(CAPTIONER), &tensors).unwrap();
            assert_eq!(open().captioner_is_untrained(), is_untrained);
        }
    }

    #[test]
    fn a_manifest_that_the_files_do_not_bear_out_is_refused() {
        let wide = problem(|manifest| manifest.captioner.decoder_inner = 1 << 40);
        assert!(wide.contains("misshapen: decoder.transformer.h.0.mlp.c_fc.bias [10], not [1099511627776]"), "{wide}");
        assert!(problem(|manifest| manifest.captioner.encoder_layers = usize::MAX).contains("layers are more than"));
        assert!(problem(|manifest| manifest.captioner.heads = 0).contains("0 heads cannot share a width of 4"));
        assert!(
            problem(|manifest| manifest.vision.path = "../vision.safetensors".into()).contains("must be a file of")
        );
        assert!(problem(|manifest| manifest.vision.architecture.image_size = 6).contains("10 hidden states of 8"));
        assert!(problem(|manifest| manifest.vocabulary = Vocabulary::Full).contains("has 49409 tokens"));
        let descending = problem(|manifest| manifest.vocabulary = Vocabulary::Tokens(vec![17, 3]));
        assert!(descending.contains("vocabulary: must ascend"), "{descending}");
        let elsewhere = problem(|manifest| {
            manifest.vision.path = "/nowhere/ViT-L-14.pt".into();
            manifest.vision.sha256 = Some("0".into());
        });
        assert!(elsewhere.contains("/nowhere/ViT-L-14.pt"), "{elsewhere}");
    }

    proptest! {
        #[test]
        fn no_manifest_makes_it_panic(text in ".*", place in 0..400_usize, byte: u8) {
            let folder = folder();
            let path = folder.path().join(MANIFEST);
            let mut mutated = std::fs::read(&path).unwrap();
            let place = place % mutated.len();
            mutated[place] = byte;
            for content in [text.into_bytes(), mutated, b"[".repeat(100_000)] {
                std::fs::write(&path, content).unwrap();
                // Most are refused; some mutations only rename tensors.
                _ = Folder::open(folder.path()).and_then(|folder| folder.vision().map(|_| ()));
            }
        }
    }
}
