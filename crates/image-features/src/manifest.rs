use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, MANIFEST};

/// The version of the format; incremented when older programs cannot read newer stores.
const FORMAT_VERSION: u32 = 1;
/// Maximal size of a manifest, in bytes.
const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Maximal dimension of a row. It bounds the memory that an invalid manifest can request.
const MAX_DIMENSION: u64 = 1 << 24;

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

/// The description of a frozen CLIP image encoder: identity of its weights, and how its outputs are
/// computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderDescription {
    /// The path of the weights; informational.
    pub weights: PathBuf,
    /// The SHA-256 of the weights.
    pub sha256: String,
    /// The side of the input images, in pixels.
    pub image_size: u32,
    /// The differences from the computation of OpenAI's model of the same size, in words.
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
    pub vision: EncoderDescription,
    /// The encoder of the first embedding.
    pub evaluator: EncoderDescription,
    /// The encoders of the other embeddings, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub further_evaluators: Vec<EncoderDescription>,
    /// The number of hidden states per image.
    pub tokens: u64,
    /// The width of a hidden state.
    pub width: u64,
    /// The total width of an image's embeddings.
    pub embedding: u64,
    /// The number type.
    pub dtype: Dtype,
}

/// The format of a store's rows.
#[derive(Clone, Debug)]
pub struct RowFormat {
    /// The number of hidden states per image, their width, and the total width of an image's
    /// embeddings.
    pub shape: [u64; 3],
    /// The number type.
    pub dtype: Dtype,
}

impl Manifest {
    /// Creates the manifest for `images` images of `split` with the names' hash `names_sha256`,
    /// encoded by the captioner's vision encoder and by the image encoders of evaluators.
    ///
    /// # Panics
    /// If there is no evaluator.
    #[must_use]
    pub fn new(
        split: String,
        (images, names_sha256): (u64, String),
        preprocessing: String,
        (vision, evaluators): (EncoderDescription, Vec<EncoderDescription>),
        RowFormat { shape: [tokens, width, embedding], dtype }: RowFormat,
    ) -> Self {
        let mut evaluators = evaluators.into_iter();
        let evaluator = evaluators.next().expect("rows have an embedding");
        Self {
            format: FORMAT_VERSION,
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
    pub fn values_per_row(&self) -> usize {
        (self.tokens * self.width + self.embedding) as usize
    }

    /// The size of a row, in bytes.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.values_per_row() * self.dtype.size()
    }

    /// Reads the manifest of the store in `folder`; none if there is no store.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(MANIFEST);
        let file_error = |source| Error::File { path: path.clone(), source };
        let invalid = |problem: String| Error::Manifest { path: path.clone(), problem };
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file_error(error)),
            Ok(file) if file.len() > MAX_MANIFEST_BYTES => {
                return Err(invalid(format!("{} bytes are no manifest", file.len())));
            }
            Ok(_) => {}
        }
        let bytes = std::fs::read(&path).map_err(file_error)?;
        let manifest: Self = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
        if manifest.format != FORMAT_VERSION {
            return Err(invalid(format!("it has format {}, this program reads {FORMAT_VERSION}", manifest.format)));
        }
        let Self { images, tokens, width, embedding, .. } = manifest;
        let are_dimensions_valid =
            [tokens, width, embedding].iter().all(|dimension| (1..MAX_DIMENSION).contains(dimension));
        if !are_dimensions_valid || tokens * width >= MAX_DIMENSION * 256 || images > u64::from(u32::MAX) {
            return Err(invalid(format!("{images} images of {tokens} x {width} + {embedding} numbers cannot be")));
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest to `folder` atomically.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(MANIFEST);
        let partial_path = folder.join(format!("{MANIFEST}.partial"));
        let file_error = |source| Error::File { path: path.clone(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|error| file_error(error.into()))?;
        let written =
            File::create(&partial_path).and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        written.map_err(file_error)?;
        std::fs::rename(&partial_path, &path).map_err(file_error)
    }

    /// Checks that the rows of this store are those of `required`. Paths of weights and the number
    /// type may differ; hashes may not.
    pub(crate) fn ensure_matches(&self, folder: &Path, required: &Self) -> Result<(), Error> {
        let shape = |m: &Self| format!("{} x {} + {}", m.tokens, m.width, m.embedding);
        let size = |encoder: &EncoderDescription| format!("{} pixels", encoder.image_size);
        let images = |m: &Self| format!("{} images with SHA-256 {}", m.images, m.names_sha256);
        let further_evaluators = |m: &Self| {
            let descriptions =
                m.further_evaluators.iter().map(|encoder| format!("{} {}", encoder.sha256, encoder.computation));
            descriptions.collect::<Vec<_>>().join(", ")
        };
        let properties = [
            ("vision encoder", self.vision.sha256.clone(), required.vision.sha256.clone()),
            ("evaluator", self.evaluator.sha256.clone(), required.evaluator.sha256.clone()),
            ("image size", size(&self.vision), size(&required.vision)),
            ("image size of the evaluator", size(&self.evaluator), size(&required.evaluator)),
            ("computation of the vision encoder", self.vision.computation.clone(), required.vision.computation.clone()),
            (
                "computation of the evaluator",
                self.evaluator.computation.clone(),
                required.evaluator.computation.clone(),
            ),
            ("further evaluators", further_evaluators(self), further_evaluators(required)),
            ("split", self.split.clone(), required.split.clone()),
            ("list of images", images(self), images(required)),
            ("preprocessing", self.preprocessing.clone(), required.preprocessing.clone()),
            ("shape", shape(self), shape(required)),
        ];
        match properties.into_iter().find(|(_, stored, required)| stored != required) {
            None => Ok(()),
            Some((property, stored, required)) => {
                Err(Error::Mismatch { path: folder.to_owned(), property, stored, required })
            }
        }
    }
}
