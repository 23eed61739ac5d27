//! The ZIP format of `torch.save` and `torch.jit.save`: one folder with the pickle `data.pkl`, a
//! file in `data/` for each storage that the pickle names, and `byteorder` (PyTorch's
//! `caffe2/serialize/inline_container.h`).
//!
//! PyTorch stores both uncompressed, so they can be memory-mapped. Compressed ones are refused:
//! nothing is ever decompressed.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;
use std::path::Path;

use zip::{CompressionMethod, ZipArchive};

use super::view::Layout;
use super::{Found, pickle};
use crate::error::Error;

/// Maximal number of files in an archive: the largest published models have some thousand storages.
const MAX_FILES: usize = 1 << 17;
const PICKLE: &str = "data.pkl";

/// The tensors of the file `path`, whose content is `bytes`.
pub fn find(path: &Path, bytes: &[u8]) -> Result<Found, Error> {
    let directory = Directory::read(path, bytes)?;
    if directory.get("byteorder").and_then(|place| bytes.get(place)).is_some_and(|order| order != b"little") {
        return Err(Error::format(path, "is big-endian: save it again on a little-endian machine"));
    }
    let pickle = directory.get(PICKLE).and_then(|place| bytes.get(place)).unwrap_or_default();
    let views = pickle::read(pickle).map_err(|fault| Error::format(path, fault))?;
    let found = views.into_iter().map(|(name, view)| match layout(&directory, &view) {
        Ok(layout) => Ok((name, view.dtype, view.shape, layout)),
        Err(problem) => Err(Error::tensor(path, &name, problem)),
    });
    found.collect()
}

fn layout(directory: &Directory, view: &pickle::View<'_>) -> Result<Layout, String> {
    let storage =
        directory.get(&format!("data/{}", view.key)).ok_or_else(|| format!("its storage {} is missing", view.key))?;
    if view.storage_bytes.is_none_or(|bytes| bytes > storage.len()) {
        return Err(format!("its storage {} is cut short", view.key));
    }
    Layout::new(storage, view.dtype.size(), view.offset, &view.shape, view.strides.clone())
        .ok_or_else(|| format!("reaches out of its storage {}", view.key))
}

/// The positions of an archive's files, by their path below its folder.
struct Directory(HashMap<String, Range<usize>>);

impl Directory {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |problem: &dyn std::fmt::Display| Error::format(path, format!("damaged ZIP archive: {problem}"));
        let mut archive = ZipArchive::new(Cursor::new(bytes)).map_err(|error| damaged(&error))?;
        if archive.len() > MAX_FILES {
            return Err(damaged(&format!("more than {MAX_FILES} files")));
        }
        let folder = folder(path, &archive)?;
        let mut places = HashMap::new();
        for number in 0..archive.len() {
            let file = archive.by_index_raw(number).map_err(|error| damaged(&error))?;
            let name = str::from_utf8(file.name_raw()).ok().and_then(|name| name.strip_prefix(&folder));
            let Some(name) = name.filter(|name| is_wanted(name)).map(str::to_owned) else { continue };
            if file.compression() != CompressionMethod::STORE
                || file.encrypted()
                || file.size() != file.compressed_size()
            {
                return Err(Error::format(path, format!("{folder}{name} is compressed, which PyTorch never does")));
            }
            let start = file.data_start().and_then(|start| usize::try_from(start).ok());
            let place = start.zip(usize::try_from(file.size()).ok()).and_then(|(start, length)| {
                start.checked_add(length).filter(|&end| end <= bytes.len()).map(|end| start..end)
            });
            let place = place.ok_or_else(|| damaged(&format!("{folder}{name} reaches out of it")))?;
            places.insert(name, place);
        }
        Ok(Self(places))
    }

    fn get(&self, name: &str) -> Option<Range<usize>> {
        self.0.get(name).cloned()
    }
}

/// The folder with the pickle, and a slash: the name of the file when it was saved.
fn folder(path: &Path, archive: &ZipArchive<Cursor<&[u8]>>) -> Result<String, Error> {
    let mut folders = archive.file_names_raw().filter_map(|name| {
        let folder = str::from_utf8(name).ok()?.strip_suffix(PICKLE)?;
        (folder.find('/')? + 1 == folder.len()).then(|| folder.to_owned())
    });
    match (folders.next(), folders.next()) {
        (Some(folder), None) => Ok(folder),
        (None, _) => Err(Error::format(path, format!("is a ZIP archive without {PICKLE}, so not one of PyTorch's"))),
        _ => Err(Error::format(path, format!("has more than one {PICKLE}"))),
    }
}

/// Whether a file is needed. TorchScript archives also contain code, which is compressed and
/// ignored.
fn is_wanted(name: &str) -> bool {
    name == PICKLE || name == "byteorder" || name.starts_with("data/")
}
