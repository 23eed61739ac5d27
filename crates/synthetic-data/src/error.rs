use std::path::{Path, PathBuf};

/// An error in writing or reading a synthetic data set. The message is one line that names the
/// file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of images is too small for three splits, or too large for six-digit file names.
    #[error("cannot generate {requested} images: request 3 to 999999")]
    ImageCount {
        /// The requested number of images.
        requested: usize,
    },
    /// A file or folder could not be read, created or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// An image could not be encoded.
    #[error("{}: {source}", path.display())]
    Encode {
        /// The image file.
        path: PathBuf,
        /// The encoder's error.
        source: image::ImageError,
    },
    /// A file is not valid JSON or describes an invalid scene, or JSON could not be written to it.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// The error in reading, with line and column, or in writing.
        source: serde_json::Error,
    },
}

impl Error {
    /// For `map_err` on operations with the file at `path`.
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }

    /// For `map_err` on JSON of the file at `path`.
    pub(crate) fn json(path: &Path) -> impl FnOnce(serde_json::Error) -> Self {
        move |source| Self::Json { path: path.to_owned(), source }
    }
}
