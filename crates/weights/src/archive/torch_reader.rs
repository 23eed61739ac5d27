//! The ZIP format of `torch.save` and `torch.jit.save`: one folder with the pickle `data.pkl`, a
//! file in `data/` for each storage that the pickle names, and `byteorder` (PyTorch's
//! `caffe2/serialize/inline_container.h`).
//!
//! PyTorch stores these files uncompressed, so they can be memory-mapped. An archive in which one
//! of them is compressed is refused: nothing is ever decompressed.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::layout::Layout;
use super::{LocatedTensor, pickle};
use crate::error::Error;

/// Maximal number of files in an archive: the largest public models have some thousand storages.
const MAX_FILES: usize = 1 << 17;
const PICKLE_FILE: &str = "data.pkl";

/// The tensors of the file `path`, whose content is `bytes`.
pub fn locate_tensors(path: &Path, bytes: &[u8]) -> Result<Vec<LocatedTensor>, Error> {
    let directory = ZipDirectory::read(path, bytes)?;
    if directory.get("byteorder").and_then(|range| bytes.get(range)).is_some_and(|order| order != b"little") {
        return Err(Error::invalid(path, "is big-endian: save it again on a little-endian machine"));
    }
    let pickle = directory.get(PICKLE_FILE).and_then(|range| bytes.get(range)).unwrap_or_default();
    let views = pickle::read(pickle).map_err(|error| Error::invalid(path, error))?;
    let tensors = views.into_iter().map(|(name, view)| match layout(&directory, &view) {
        Ok(layout) => Ok(LocatedTensor { name, dtype: view.dtype, shape: view.shape, layout }),
        Err(error) => Err(Error::tensor(path, &name, error)),
    });
    tensors.collect()
}

/// Why a tensor of a pickle does not match its storage.
#[derive(Debug, thiserror::Error)]
enum StorageError {
    /// The archive has no such storage.
    #[error("its storage {0} is missing")]
    Missing(String),
    /// The storage has fewer bytes than the pickle says.
    #[error("its storage {0} is truncated")]
    Truncated(String),
    /// Elements of the tensor would be beyond the storage.
    #[error("extends beyond its storage {0}")]
    OutOfBounds(String),
}

/// The layout in the file of a tensor of the pickle.
fn layout(directory: &ZipDirectory, view: &pickle::TensorView<'_>) -> Result<Layout, StorageError> {
    let key = || view.key.to_owned();
    let storage = directory.get(&format!("data/{}", view.key)).ok_or_else(|| StorageError::Missing(key()))?;
    if view.storage_bytes.is_none_or(|bytes| bytes > storage.len()) {
        return Err(StorageError::Truncated(key()));
    }
    Layout::new(storage, view.dtype.size(), view.offset, &view.shape, view.strides.clone())
        .ok_or_else(|| StorageError::OutOfBounds(key()))
}

/// The byte ranges of the needed files of an archive, by their path below the folder with the
/// pickle.
struct ZipDirectory(HashMap<String, Range<usize>>);

impl ZipDirectory {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |problem: &dyn std::fmt::Display| Error::invalid(path, format!("damaged ZIP archive: {problem}"));
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
        if archive.len() > MAX_FILES {
            return Err(damaged(&format!("more than {MAX_FILES} files")));
        }
        let folder = pickle_folder(path, &archive)?;
        let mut ranges = HashMap::new();
        for index in 0..archive.len() {
            let file = archive.by_index_raw(index).map_err(|error| damaged(&error))?;
            let name = str::from_utf8(file.name_raw()).ok().and_then(|name| name.strip_prefix(&folder));
            let Some(name) = name.filter(|name| is_needed(name)).map(str::to_owned) else { continue };
            if file.compression() != CompressionMethod::STORE
                || file.encrypted()
                || file.size() != file.compressed_size()
            {
                return Err(Error::invalid(path, format!("{folder}{name} is compressed, which PyTorch never does")));
            }
            let start = file.data_start().and_then(|start| usize::try_from(start).ok());
            let range = start.zip(usize::try_from(file.size()).ok()).and_then(|(start, length)| {
                start.checked_add(length).filter(|&end| end <= bytes.len()).map(|end| start..end)
            });
            let range = range.ok_or_else(|| damaged(&format!("{folder}{name} extends beyond it")))?;
            ranges.insert(name, range);
        }
        Ok(Self(ranges))
    }

    fn get(&self, name: &str) -> Option<Range<usize>> {
        self.0.get(name).cloned()
    }
}

/// The path of the folder with the pickle, with a slash at the end. PyTorch names the folder after
/// the saved file.
fn pickle_folder(path: &Path, archive: &ZipArchive<Cursor<&[u8]>>) -> Result<String, Error> {
    let mut folders = archive.file_names_raw().filter_map(|name| {
        let folder = str::from_utf8(name).ok()?.strip_suffix(PICKLE_FILE)?;
        (folder.find('/')? + 1 == folder.len()).then(|| folder.to_owned())
    });
    match (folders.next(), folders.next()) {
        (Some(folder), None) => Ok(folder),
        (None, _) => {
            Err(Error::invalid(path, format!("is a ZIP archive without {PICKLE_FILE}, so PyTorch did not write it")))
        }
        _ => Err(Error::invalid(path, format!("has more than one {PICKLE_FILE}"))),
    }
}

/// Whether a file is needed. TorchScript archives also contain code, which is compressed and
/// ignored.
fn is_needed(name: &str) -> bool {
    name == PICKLE_FILE || name == "byteorder" || name.starts_with("data/")
}
