use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::{CHECKSUM_BYTES, CHECKSUMS, Error, FEATURES, Manifest};

/// A complete store, with random access to its rows.
pub struct Store {
    folder: PathBuf,
    manifest: Manifest,
    features: Mmap,
    checksums: Vec<u8>,
}

impl Store {
    /// Opens the store in `folder`, whose rows must be those of `required`; the number type may
    /// differ.
    ///
    /// # Errors
    /// There is no store, it is incomplete, or it was computed from other weights, images or
    /// settings.
    pub fn open(folder: &Path, required: &Manifest) -> Result<Self, Error> {
        let file_error = |name: &str| {
            let path = folder.join(name);
            move |source| Error::File { path, source }
        };
        let missing = || file_error(crate::MANIFEST)(std::io::ErrorKind::NotFound.into());
        let manifest = Manifest::read(folder)?.ok_or_else(missing)?;
        manifest.ensure_matches(folder, required)?;
        let checksums = std::fs::read(folder.join(CHECKSUMS)).map_err(file_error(CHECKSUMS))?;
        let file = File::open(folder.join(FEATURES)).map_err(file_error(FEATURES))?;
        // SAFETY: this program never writes to a complete store (a writer appends rows only while
        // there are fewer than images); every row is checked by its checksum before it is used.
        let features = unsafe { Mmap::map(&file) }.map_err(file_error(FEATURES))?;
        let rows = (checksums.len() / CHECKSUM_BYTES).min(features.len() / manifest.row_bytes()) as u64;
        if rows != manifest.images {
            return Err(Error::Incomplete { path: folder.to_owned(), rows, images: manifest.images });
        }
        Ok(Self { folder: folder.to_owned(), manifest, features, checksums })
    }

    /// The store's manifest.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether image `row` could not be decoded when the store was computed. Its embedding is then
    /// all zeros; the embedding of a decoded image has length 1.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn is_undecodable(&self, row: usize) -> bool {
        let (length, embedding) =
            (self.manifest.row_bytes(), self.manifest.embedding as usize * self.manifest.dtype.size());
        self.features[row * length..][..length][length - embedding..].iter().all(|&byte| byte == 0)
    }

    /// The values of image `row` as bytes: hidden states, then embeddings.
    ///
    /// # Errors
    /// The row does not match its checksum.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> Result<&[u8], Error> {
        let length = self.manifest.row_bytes();
        let bytes = &self.features[row * length..][..length];
        if crc32fast::hash(bytes).to_le_bytes() != self.checksums[row * CHECKSUM_BYTES..][..CHECKSUM_BYTES] {
            return Err(Error::Damaged { path: self.folder.clone(), row: row as u64 });
        }
        Ok(bytes)
    }
}
