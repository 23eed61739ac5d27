//! Data sets of images and captions: annotation formats, and tars in folders or buckets.
//!
//! The coordinator uses it to check a run's data before it starts, workers to train on them. All
//! functions block: call them from synchronous threads, never from asynchronous code.

mod annotations;
mod brace_expansion;
mod caption_requirements;
mod coco;
mod data_set;
mod error;
mod fingerprint;
mod image_checks;
pub mod image_folder;
mod image_names;
mod index;
mod item;
mod karpathy;
pub mod limits;
mod loading;
mod positives;
mod shards;
mod split;
mod split_overlap;
mod store;
mod tar_reader;
mod webdataset;

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use image_preprocess::MAX_ENCODED_BYTES;

pub use data_set::DataSet;
pub use error::{Error, UnknownSplitError};
pub use item::{BadImage, Item, UnusualImages};
use item::{ImageRef, Splits};
pub use split::Split;

/// The paths of the validation split's images, by name; empty if they are in tars. Reads only
/// annotations.
///
/// # Errors
/// They cannot be read or have a wrong format.
pub fn validation_files(settings: &config::Data) -> Result<HashMap<String, PathBuf>, Error> {
    if settings.webdataset.is_some() {
        return Ok(HashMap::new());
    }
    let data = DataSet::load_annotations(settings, Split::Validation)?;
    let file = |item: Item| match item.image {
        ImageRef::File(path) => Some((item.name, path)),
        ImageRef::TarMember(_) => None,
    };
    Ok(data.splits.validation.into_iter().filter_map(file).collect())
}

/// The bytes of an image file, up to the maximal size of an image.
///
/// # Errors
/// It cannot be read, or is too large.
pub fn read_file(path: &Path) -> Result<Bytes, Error> {
    let read_error = |source| Error::Read { location: path.display().to_string(), source };
    let file = std::fs::File::open(path).map_err(read_error)?;
    let mut encoded = Vec::new();
    file.take(MAX_ENCODED_BYTES + 1).read_to_end(&mut encoded).map_err(read_error)?;
    if encoded.len() as u64 > MAX_ENCODED_BYTES {
        return Err(Error::image(path.display(), format!("larger than {MAX_ENCODED_BYTES} bytes")));
    }
    Ok(encoded.into())
}

#[cfg(test)]
mod tests;
