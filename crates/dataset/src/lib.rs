//! Data sets of images and captions: annotation formats, and tars in folders or buckets.
//!
//! The coordinator uses this crate to check a run's data before the run starts, workers to train on
//! the data. All functions block: call them from synchronous threads, never from asynchronous code.
//!
//! | module | content |
//! |---|---|
//! | `karpathy`, `coco` | read the annotation files of Karpathy's splits and of COCO, VizWiz and nocaps |
//! | `annotations` | code that these share: JSON files, captions, image paths |
//! | `webdataset` | loads data sets whose images and captions are in tars |
//! | `brace_expansion` | expands the patterns that name tars, as bash does |
//! | `store` | reads tars from folders and S3 buckets |
//! | `tar_reader`, `index`, `shards` | read a tar's headers; index its samples; read its images by byte range |
//! | `data_set`, `loading` | a loaded data set, and loading it with the checks of a run file |
//! | `item`, `split` | an image with its captions; the names of splits |
//! | `image_names` | unique names and numeric ids of a split's images |
//! | `image_folder` | finds the images of a folder by path, file name or COCO id |
//! | `image_checks` | checks image files in parallel |
//! | `positives` | generated images and captions, the additional positive pairs of PAC-S |
//! | `caption_requirements` | whether and why a run needs reference captions |
//! | `split_overlap` | detects images that are in several splits |
//! | `fingerprint` | hashes by which two workers compare their data |
//! | `limits` | checks against the maximal numbers and sizes |

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
mod limits;
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
/// The annotations cannot be read, have a wrong format, or exceed a limit of [`limits`].
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

/// The bytes of an image file.
///
/// # Errors
/// The file cannot be read, or has more than [`MAX_ENCODED_BYTES`].
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
