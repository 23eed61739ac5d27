//! File access: large files are memory-mapped, small ones read, and files are written atomically.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::error::Error;

/// Maximal size of a JSON file, in bytes. The largest are shard indexes; those of public models
/// have some megabytes.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A memory-mapped file.
pub(crate) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = open(path)?;
        // SAFETY: the map is read-only and used only as bytes, and every value of a byte is valid.
        // Weights must not be overwritten in place or truncated while they are read, as with every
        // reader that maps them; a file that is replaced by renaming, as downloads and
        // `write_safetensors` do, stays intact.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::file(path))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

fn open(path: &Path) -> Result<File, Error> {
    // Checked before opening, because opening a pipe waits for its other end.
    if !std::fs::metadata(path).map_err(Error::file(path))?.is_file() {
        return Err(Error::invalid(path, "is not a regular file"));
    }
    File::open(path).map_err(Error::file(path))
}

/// Parses the JSON file at `path`.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let mut bytes = Vec::new();
    let file = open(path)?;
    file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(Error::file(path))?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        return Err(Error::invalid(path, format!("is longer than {MAX_JSON_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes).map_err(|error| Error::invalid(path, error))
}

/// Writes the file `path` atomically and durably: `fill` writes a temporary file, which is then
/// renamed.
pub(crate) fn write_atomically(path: &Path, fill: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), Error> {
    let mut partial = OsString::from(path);
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let write = || {
        fill(&partial)?;
        File::open(&partial)?.sync_all()?;
        std::fs::rename(&partial, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    write().map_err(Error::file(path)).inspect_err(|_| {
        // If the temporary file cannot be deleted either, that error is not reported.
        let _ = std::fs::remove_file(&partial);
    })
}
