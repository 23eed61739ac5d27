//! Writes a captioner in the upstream layout.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use safetensors::SafeTensorError;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};

use crate::archive::to_safetensors_dtype;
use crate::clip::names::{HuggingFaceNames, vision_to_hugging_face};
use crate::error::Error;
use crate::file::write_atomically;
use crate::tensor::{Dtype, Tensor};

/// The vision encoder's tensors under their upstream names, which begin with `prefix`
/// ([`super::VISION_PREFIX`], or that of [`super::UpstreamFolder::vision_prefix`]): the inverse of
/// [`super::UpstreamFolder::vision_tensors`]. `visual.proj` is not part of that layout and is left
/// out.
///
/// # Errors
/// A tensor is not one of a vision transformer, or cannot be split into query, key and value; the
/// message names it.
pub fn vision_to_upstream<'a>(
    tensors: Vec<(String, Tensor<'a>)>,
    prefix: &str,
) -> Result<Vec<(String, Tensor<'a>)>, Error> {
    let mut upstream = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors.into_iter().filter(|(name, _)| name != "visual.proj") {
        match vision_to_hugging_face(&name) {
            Some(HuggingFaceNames::Single(name)) => upstream.push((format!("{prefix}{name}"), tensor)),
            Some(HuggingFaceNames::QueryKeyValue(names)) => {
                let parts = tensor
                    .split_stacked()
                    .ok_or_else(|| Error::export(&name, "cannot be split into query, key and value"))?;
                upstream.extend(names.into_iter().map(|name| format!("{prefix}{name}")).zip(parts));
            }
            None => return Err(Error::export(&name, "is not a tensor of Hugging Face's vision transformer")),
        }
    }
    Ok(upstream)
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
        let view = TensorView::new(to_safetensors_dtype(*dtype), shape.clone(), bytes).map_err(|_| {
            Error::tensor(path, name, format!("has {} bytes, which do not match the shape {shape:?}", bytes.len()))
        })?;
        if views.insert(name.as_str(), view).is_some() {
            return Err(Error::tensor(path, name, "occurs twice"));
        }
    }
    write_atomically(path, |partial| {
        safetensors::serialize_to_file(&views, Some(pytorch_metadata()), partial).map_err(|error| match error {
            SafeTensorError::IoError(error) => error,
            other => std::io::Error::other(other),
        })
    })
}

/// Builds the header of a safetensors file with consecutive tensors of `f32`, from their names and
/// shapes. With it a caller can write a file tensor by tensor, without the whole file in memory.
///
/// # Errors
/// A name occurs twice, or a tensor is too large for a file.
pub fn safetensors_header(tensors: impl IntoIterator<Item = (String, Vec<usize>)>) -> Result<Vec<u8>, Error> {
    let mut end = 0;
    let mut names = BTreeSet::new();
    let mut infos = Vec::new();
    for (name, shape) in tensors {
        let size = shape.iter().try_fold(Dtype::F32.size(), |size, &length| size.checked_mul(length));
        let tensor_end = size.and_then(|size| size.checked_add(end));
        let tensor_end = tensor_end.ok_or_else(|| Error::export(&name, "is larger than a file can be"))?;
        if !names.insert(name.clone()) {
            return Err(Error::export(&name, "occurs twice"));
        }
        infos.push((
            name,
            TensorInfo { dtype: to_safetensors_dtype(Dtype::F32), shape, data_offsets: (end, tensor_end) },
        ));
        end = tensor_end;
    }
    let header_error = |error: &dyn std::fmt::Display| Error::export("header", error);
    let metadata = Metadata::new(Some(pytorch_metadata()), infos).map_err(|error| header_error(&error))?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| header_error(&error))?;
    // The tensors start at a multiple of eight bytes, so that memory-mapped numbers are aligned.
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// Metadata that name PyTorch as the framework: transformers refuses a file without.
fn pytorch_metadata() -> HashMap<String, String> {
    HashMap::from([("format".to_owned(), "pt".to_owned())])
}
