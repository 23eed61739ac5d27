//! The published layout, written.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::SafeTensorError;
use safetensors::tensor::TensorView;

use crate::archive::stored;
use crate::clip::names::{Returned, vision_to_hugging_face};
use crate::error::Error;
use crate::tensor::Tensor;

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
    let partial = partial(path);
    write(&views, &partial, path).map_err(|source| Error::File { path: path.to_owned(), source }).inspect_err(|_| {
        // What led here is the error to report; that the remains stay is not.
        let _ = std::fs::remove_file(&partial);
    })
}

fn write(views: &BTreeMap<&str, TensorView<'_>>, partial: &Path, path: &Path) -> std::io::Result<()> {
    // transformers refuses a file that does not say by whom its tensors are meant to be read.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), partial).map_err(|error| match error {
        SafeTensorError::IoError(error) => error,
        other => std::io::Error::other(other),
    })?;
    File::open(partial)?.sync_all()?;
    std::fs::rename(partial, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn partial(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".partial");
    PathBuf::from(name)
}
