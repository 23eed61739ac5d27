use std::path::{Path, PathBuf};

/// Why a world could not be made or read, in one line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A number of images that cannot be split, or that file names have no digits for.
    #[error("cannot make {asked} images: ask for 3 to 999999")]
    Images {
        /// How many were asked for.
        asked: usize,
    },
    /// A file or folder could not be read, made or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An image could not be encoded.
    #[error("{}: {source}", path.display())]
    Encode {
        /// The image file.
        path: PathBuf,
        /// What the encoder said.
        source: image::ImageError,
    },
    /// A file is not the JSON that it should be, or describes an impossible scene.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
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
