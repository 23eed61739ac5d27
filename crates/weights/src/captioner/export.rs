//! Writing of the published layout.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use crate::archive::stored;
use crate::clip::names::{Returned, vision_to_hugging_face};
use crate::error::Error;
use crate::file::write_whole;
use crate::tensor::{Dtype, Tensor};

/// The vision encoder's tensors under their published names, which begin with `prefix`
/// ([`super::VISION_PREFIX`], or that of [`super::ReleasedFolder::vision_prefix`]): the inverse of
/// [`super::ReleasedFolder::vision_tensors`]. `visual.proj` is not part of that layout and is left out.
///
/// # Errors
/// A tensor is not one of a vision transformer, or cannot be split into query, key and value; the
/// message names it.
pub fn vision_to_released<'a>(
    tensors: Vec<(String, Tensor<'a>)>,
    prefix: &str,
) -> Result<Vec<(String, Tensor<'a>)>, Error> {
    let mut released = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| name != "visual.proj") {
        match vision_to_hugging_face(&name) {
            Some(Returned::Whole(there)) => released.push((format!("{prefix}{there}"), tensor)),
            Some(Returned::Thirds(there)) => {
                let parts = tensor.thirds().ok_or_else(|| Error::export(&name, "is no query, key and value"))?;
                released.extend(there.into_iter().map(|there| format!("{prefix}{there}")).zip(parts));
            }
            None => return Err(Error::export(&name, "has no place in Hugging Face's vision transformer")),
        }
    }
    Ok(released)
}

/// Writes tensors to one safetensors file, as transformers expects it. The file is written
/// atomically.
///
/// # Errors
/// The file cannot be written, or a tensor has a wrong size or a name that occurs twice; the
/// message names it.
pub fn write_safetensors(path: &Path, tensors: &[(String, Tensor<'_>)]) -> Result<(), Error> {
    let mut views = BTreeMap::new();
    for (name, Tensor { dtype, shape, bytes }) in tensors {
        let view = TensorView::new(stored(*dtype), shape.clone(), bytes).map_err(|_| {
            Error::tensor(path, name, format!("has {} bytes, which {shape:?} does not take", bytes.len()))
        })?;
        if views.insert(name.as_str(), view).is_some() {
            return Err(Error::tensor(path, name, "is there twice"));
        }
    }
    write_whole(path, |partial| {
        safetensors::serialize_to_file(&views, Some(written_by()), partial).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other),
        })
    })
}

/// The header of a safetensors file with consecutive 32-bit tensors, for writing a file without
/// having it in memory.
///
/// # Errors
/// A name occurs twice, or a tensor is too large for a file.
pub fn safetensors_start(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<Vec<u8>, Error> {
    let mut end = 0;
    let mut names = BTreeSet::new();
    let mut infos = Vec::new();
    for (name, shape) in tensors {
        let size = shape.iter().try_fold(Dtype::F32.size(), |size, &side| size.checked_mul(side));
        let after = size.and_then(|size| size.checked_add(end));
        let after = after.ok_or_else(|| Error::export(&name, "is larger than a file can be"))?;
        if !names.insert(name.clone()) {
            return Err(Error::export(&name, "is there twice"));
        }
        infos.push((name, TensorInfo { dtype: stored(Dtype::F32), shape, data_offsets: (end, after) }));
        end = after;
    }
    let failed = |error: &dyn std::fmt::Display| Error::export("header", error);
    let metadata = Metadata::new(Some(written_by()), infos).map_err(|error| failed(&error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| failed(&error))?;
    // Memory-mapped numbers have to be aligned: they begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// transformers refuses a file whose metadata do not name the framework of its tensors.
fn written_by() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}
