//! The image files of the validation split. The data set's annotations give the file of an image's
//! name.

use std::{
    collections::HashMap,
    fmt::Display,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use config::Data;
use tokio::{
    sync::{AcquireError, OnceCell, Semaphore},
    task::JoinError,
};
use tracing::warn;

/// Maximal size of an image that is served, in bytes.
const MAX_IMAGE_BYTES: u64 = 16 << 20;
/// Maximal number of images that are read concurrently.
const MAX_CONCURRENT_READS: usize = 4;

/// Finds and reads the images of the validation split.
pub struct Images {
    data: Data,
    /// Paths by image name. Read on the first request, because annotations can be large.
    paths: OnceCell<HashMap<String, PathBuf>>,
    /// Limits the number of images that are read concurrently.
    permits: Semaphore,
}

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("it is not in a folder that this coordinator can read")]
    NotFound,
    #[error("it is neither JPEG nor PNG nor WebP")]
    UnsupportedFormat,
    #[error("it has more than {MAX_IMAGE_BYTES} bytes")]
    TooLarge,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Panic(#[from] JoinError),
    #[error(transparent)]
    Closed(#[from] AcquireError),
}

impl Images {
    /// The images of this data set.
    pub fn new(data: Data) -> Self {
        Self { data, paths: OnceCell::new(), permits: Semaphore::new(MAX_CONCURRENT_READS) }
    }

    /// The media type and the bytes of an image.
    pub async fn read(&self, name: &str) -> Result<(&'static str, Vec<u8>), ImageError> {
        let _permit = self.permits.acquire().await?;
        let paths = self.paths.get_or_init(|| find_paths(self.data.clone())).await;
        let path = paths.get(name).ok_or(ImageError::NotFound)?.clone();
        let bytes = tokio::task::spawn_blocking(move || read_limited(&path)).await??;
        Ok((media_type(&bytes).ok_or(ImageError::UnsupportedFormat)?, bytes))
    }
}

/// The paths of the images by name. Logs a warning if the annotations cannot be read; then there
/// are no paths.
async fn find_paths(data: Data) -> HashMap<String, PathBuf> {
    let log_error = |error: &dyn Display| warn!(%error, "the web page cannot show images of evaluations");
    match tokio::task::spawn_blocking(move || dataset::validation_files(&data)).await {
        Ok(Ok(paths)) => return paths,
        Ok(Err(error)) => log_error(&error),
        Err(panic) => log_error(&panic),
    }
    HashMap::new()
}

/// Reads a file of at most [`MAX_IMAGE_BYTES`].
fn read_limited(path: &Path) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_IMAGE_BYTES {
        return Err(ImageError::TooLarge);
    }
    Ok(bytes)
}

/// The media type, by the first bytes. Formats that can contain scripts are not supported.
fn media_type(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_with_scripts_are_not_images() {
        for text in ["<svg xmlns=\"http://www.w3.org/2000/svg\"><script/></svg>", "<html>", "RIFF", ""] {
            assert_eq!(media_type(text.as_bytes()), None, "{text}");
        }
        assert_eq!(media_type(b"RIFF\x10\0\0\0WEBPVP8 "), Some("image/webp"));
    }

    #[test]
    fn a_file_beyond_the_size_limit_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_IMAGE_BYTES + 1).unwrap();
        assert!(read_limited(file.path()).unwrap_err().to_string().contains("more than"));
    }
}
