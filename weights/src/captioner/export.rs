//! The published layout, written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use crate::archive::stored;
use crate::clip::names::{Returned, vision_to_hugging_face};
use crate::error::Error;
use crate::file::write_whole;
use crate::tensor::{Dtype, Tensor};

/// The vision tower's tensors under their published names, which begin with `prefix` ([`super::VISION_PREFIX`], or what
/// [`super::Released::vision_prefix`] says): the inverse of [`super::Released::vision_tensors`]. `visual.proj` has no place
/// there and is left out.
///
/// # Errors
/// Names the tensor that a vision transformer does not have, or whose rows are no query, key and value.
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

/// Writes tensors to one safetensors file, as transformers expects it. It appears under its name only when it is complete.
///
/// # Errors
/// Names the file, or the tensor whose bytes do not fit its shape or whose name is there twice.
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
/// A name is there twice, or a tensor is larger than a file can be.
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
    // Numbers that are mapped into memory are looked at in place: they begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// transformers refuses a file whose metadata do not name the framework of its tensors.
fn written_by() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}
