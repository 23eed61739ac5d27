use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, MANIFEST};

/// Raised when older programs cannot read newer stores.
const FORMAT: u32 = 1;
/// A manifest is never longer.
const LONGEST: u64 = 1 << 20;
/// More than any row needs; keeps a wrong manifest from asking for absurd sizes.
const LARGEST_SIDE: u64 = 1 << 24;

/// Type of a store's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit: the numbers as they were computed.
    F32,
    /// IEEE 16-bit.
    F16,
    /// The upper half of a 32-bit number.
    Bf16,
}

impl Dtype {
    /// Bytes of a number.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A frozen tower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tower {
    /// Where its weights were read; only for people.
    pub weights: PathBuf,
    /// SHA-256 of those.
    pub sha256: String,
    /// Pixels on a side of the images that it saw.
    pub image_size: u32,
    /// How it computes otherwise than OpenAI's model of its sizes, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub computation: String,
}

/// What the rows of a store are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// Which split: train, val or test.
    pub split: String,
    /// Images of the split.
    pub images: u64,
    /// SHA-256 over their names, in order.
    pub names_sha256: String,
    /// What was done to the images before the towers saw them.
    pub preprocessing: String,
    /// Gave the hidden states.
    pub vision: Tower,
    /// Gave the embedding, or the first of several.
    pub evaluator: Tower,
    /// Gave the other embeddings, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_evaluators: Vec<Tower>,
    /// Hidden states of an image.
    pub tokens: u64,
    /// Width of a hidden state.
    pub width: u64,
    /// Width of an image's embeddings together.
    pub embedding: u64,
    /// Type of the numbers.
    pub dtype: Dtype,
}

/// What a run needs a store to be made of.
#[derive(Clone, Debug)]
pub struct Rows {
    /// Hidden states of an image, their width, and the width of its embeddings together.
    pub shape: [u64; 3],
    /// Type of the numbers.
    pub dtype: Dtype,
}

impl Manifest {
    /// Of `images` images called `names_sha256` of `split`, seen by the captioner's tower and those of evaluators.
    ///
    /// # Panics
    /// There is no evaluator.
    #[must_use]
    pub fn new(
        split: String,
        (images, names_sha256): (u64, String),
        preprocessing: String,
        (vision, evaluators): (Tower, Vec<Tower>),
        Rows { shape: [tokens, width, embedding], dtype }: Rows,
    ) -> Self {
        let mut evaluators = evaluators.into_iter();
        let evaluator = evaluators.next().expect("rows have an embedding");
        Self {
            format: FORMAT,
            split,
            images,
            names_sha256,
            preprocessing,
            vision,
            evaluator,
            further_evaluators: evaluators.collect(),
            tokens,
            width,
            embedding,
            dtype,
        }
    }

    /// Numbers of a row.
    #[must_use]
    pub fn row_numbers(&self) -> usize {
        (self.tokens * self.width + self.embedding) as usize
    }

    /// Bytes of a row.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_numbers() * self.dtype.size()
    }

    /// Of the store in `folder`, if there is one.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(MANIFEST);
        let failed = |source| Error::File { path: path.clone(), source };
        let wrong = |problem: String| Error::Manifest { path: path.clone(), problem };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(file) if file.len() > LONGEST => return Err(wrong(format!("{} bytes are no manifest", file.len()))),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!("it has format {}, this program reads {FORMAT}", manifest.format)));
        }
        let Self { images, tokens, width, embedding, .. } = manifest;
        let row = [tokens, width, embedding].iter().all(|side| (1..LARGEST_SIDE).contains(side));
        if !row || tokens * width >= LARGEST_SIDE * 256 || images > u64::from(u32::MAX) {
            return Err(wrong(format!("{images} images of {tokens} x {width} + {embedding} numbers cannot be")));
        }
        Ok(Some(manifest))
    }

    /// Writes it to `folder`, where it appears whole.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST);
        let scratch = folder.join(format!("{MANIFEST}.partial"));
        let failed = |source| Error::File { path: path.clone(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let written = File::create(&scratch).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(failed)?;
        std::fs::rename(&scratch, &path).map_err(failed)
    }

    /// Refuses a store whose rows are not those that `wanted` says. Files may have moved: only their hashes count.
    pub(crate) fn expect(&self, folder: &Path, wanted: &Self) -> Result<(), Error> {
        let shape = |m: &Self| format!("{} x {} + {}", m.tokens, m.width, m.embedding);
        let size = |tower: &Tower| format!("{} pixels", tower.image_size);
        let images = |m: &Self| format!("{} images with SHA-256 {}", m.images, m.names_sha256);
        let further = |m: &Self| {
            let named = m.further_evaluators.iter().map(|tower| format!("{} {}", tower.sha256, tower.computation));
            named.collect::<Vec<_>>().join(", ")
        };
        let compared = [
            ("vision tower", self.vision.sha256.clone(), wanted.vision.sha256.clone()),
            ("evaluator", self.evaluator.sha256.clone(), wanted.evaluator.sha256.clone()),
            ("image size", size(&self.vision), size(&wanted.vision)),
            ("image size of the evaluator", size(&self.evaluator), size(&wanted.evaluator)),
            ("computation of the vision tower", self.vision.computation.clone(), wanted.vision.computation.clone()),
            ("computation of the evaluator", self.evaluator.computation.clone(), wanted.evaluator.computation.clone()),
            ("further evaluators", further(self), further(wanted)),
            ("split", self.split.clone(), wanted.split.clone()),
            ("list of images", images(self), images(wanted)),
            ("preprocessing", self.preprocessing.clone(), wanted.preprocessing.clone()),
            ("shape", shape(self), shape(wanted)),
        ];
        match compared.into_iter().find(|(_, found, wanted)| found != wanted) {
            None => Ok(()),
            Some((what, found, wanted)) => Err(Error::Differs { path: folder.to_owned(), what, found, wanted }),
        }
    }
}
