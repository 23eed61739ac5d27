//! From files to batches: one file per annotation format, the order of samples, decoding, and a loader that works ahead.

mod image;
mod karpathy;
mod loader;
pub mod permutation;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use self::image::{Pixels, decode};
pub use loader::{Batch, Loader, Pending, Sample};

/// An image and what people said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// File name, without folders: names the image in reports.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub captions: Vec<String>,
}

/// The splits that a run uses.
#[derive(Debug, Default)]
pub struct DataSet {
    /// Trained on.
    pub train: Vec<Item>,
    /// Evaluated on, never trained on.
    pub validation: Vec<Item>,
    /// Images left out because their file is missing or not an image.
    pub skipped: u64,
}

/// What is wrong with the data, naming the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The annotations are not in their format.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// An image that the annotations name is missing or cannot be decoded.
    #[error("{}: {problem} (named by the annotations; set data.skip_corrupt to leave such images out)", path.display())]
    Image {
        /// The image file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl DataSet {
    /// Reads the run's annotations and looks at every image's header.
    ///
    /// # Errors
    /// The annotations cannot be read, a split is empty, or an image is missing or no image while `skip_corrupt` is unset.
    pub fn load(settings: &runfile::Data) -> Result<Self, Error> {
        let mut set = karpathy::read_splits(&settings.annotations, &settings.images)?;
        for split in [&mut set.train, &mut set.validation] {
            let mut kept = Vec::with_capacity(split.len());
            for item in split.drain(..) {
                match image::check(&item.path) {
                    Ok(()) => kept.push(item),
                    Err(error) if settings.skip_corrupt => {
                        tracing::warn!("leaving out {error}");
                        set.skipped += 1;
                    }
                    Err(error) => return Err(error),
                }
            }
            *split = kept;
        }
        for (name, split) in [("train", &set.train), ("val", &set.validation)] {
            if split.is_empty() {
                let problem = format!("no usable image in split `{name}`");
                return Err(Error::Format { path: settings.annotations.clone(), problem });
            }
        }
        Ok(set)
    }

    /// Captions of the training split.
    #[must_use]
    pub fn train_captions(&self) -> u64 {
        self.train.iter().map(|item| item.captions.len() as u64).sum()
    }

    /// SHA-256 over the ordered names and captions; equal where two workers see the same data.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for item in self.train.iter().chain(&self.validation) {
            for text in std::iter::once(&item.name).chain(&item.captions) {
                hash.update((text.len() as u64).to_le_bytes());
                hash.update(text);
            }
            hash.update(b"\n");
        }
        format!("{:x}", hash.finalize())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}
