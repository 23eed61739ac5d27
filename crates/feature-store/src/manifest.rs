use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, MANIFEST};

/// The version of the format; incremented when older programs cannot read newer stores.
const FORMAT: u32 = 1;
/// Maximal size of a manifest, in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// More than any row needs; bounds the sizes that an invalid manifest can request.
const MAX_SIDE: u64 = 1 << 24;

/// The number type of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floating point, as computed.
    F32,
    /// IEEE 16-bit floating point.
    F16,
    /// bfloat16: the upper half of a 32-bit number.
    Bf16,
}

impl Dtype {
    /// The size of a number, in bytes.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A frozen encoder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tower {
    /// The path of its weights; informational.
    pub weights: PathBuf,
    /// The SHA-256 of the weights.
    pub sha256: String,
    /// The side of its input images, in pixels.
    pub image_size: u32,
    /// The differences of its computation from OpenAI's model of the same sizes, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub computation: String,
}

/// The description of a store's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The split: train, val or test.
    pub split: String,
    /// The number of images of the split.
    pub images: u64,
    /// The SHA-256 of the images' names, in order.
    pub names_sha256: String,
    /// The preprocessing of the images.
    pub preprocessing: String,
    /// The encoder of the hidden states.
    pub vision: Tower,
    /// The encoder of the first embedding.
    pub evaluator: Tower,
    /// The encoders of the other embeddings, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_evaluators: Vec<Tower>,
    /// The number of hidden states per image.
    pub tokens: u64,
    /// The width of a hidden state.
    pub width: u64,
    /// The total width of an image's embeddings.
    pub embedding: u64,
    /// The number type.
    pub dtype: Dtype,
}

/// The rows that a run requires.
#[derive(Clone, Debug)]
pub struct Rows {
    /// The number of hidden states per image, their width, and the total width of an image's
    /// embeddings.
    pub shape: [u64; 3],
    /// The number type.
    pub dtype: Dtype,
}

impl Manifest {
    /// The manifest for `images` images of `split` with the names' hash `names_sha256`, encoded by
    /// the captioner's vision encoder and by those of evaluators.
    ///
    /// # Panics
    /// If there is no evaluator.
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

    /// The number of values per row.
    #[must_use]
    pub fn row_numbers(&self) -> usize {
        (self.tokens * self.width + self.embedding) as usize
    }

    /// The size of a row, in bytes.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_numbers() * self.dtype.size()
    }

    /// Reads the manifest of the store in `folder`; none if there is no store.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(MANIFEST);
        let failed = |source| Error::File { path: path.clone(), source };
        let wrong = |problem: String| Error::Manifest { path: path.clone(), problem };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
            Ok(file) if file.len() > MAX_BYTES => return Err(wrong(format!("{} bytes are no manifest", file.len()))),
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!("it has format {}, this program reads {FORMAT}", manifest.format)));
        }
        let Self { images, tokens, width, embedding, .. } = manifest;
        let row = [tokens, width, embedding].iter().all(|side| (1..MAX_SIDE).contains(side));
        if !row || tokens * width >= MAX_SIDE * 256 || images > u64::from(u32::MAX) {
            return Err(wrong(format!("{images} images of {tokens} x {width} + {embedding} numbers cannot be")));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest to `folder` atomically.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST);
        let scratch = folder.join(format!("{MANIFEST}.partial"));
        let failed = |source| Error::File { path: path.clone(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        let written = File::create(&scratch).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(failed)?;
        std::fs::rename(&scratch, &path).map_err(failed)
    }

    /// Refuses a store whose rows differ from `wanted`. Paths may differ: only hashes count.
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
