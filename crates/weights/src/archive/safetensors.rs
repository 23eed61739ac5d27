//! Hugging Face's safetensors. The crate of that name checks that tensors neither overlap nor leave
//! gaps.

use std::path::Path;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::Dtype as Stored;

use super::Found;
use super::view::Layout;
use crate::error::Error;
use crate::tensor::Dtype;

/// The tensors of the file `path`, whose content is `bytes`.
pub fn find(path: &Path, bytes: &[u8]) -> Result<Found, Error> {
    let (header, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| Error::format(path, error))?;
    // The length of the header precedes it, in eight bytes.
    let data = 8 + header;
    let found = metadata.tensors().into_iter().map(|(name, info)| {
        let dtype = dtype(info.dtype)
            .ok_or_else(|| Error::tensor(path, &name, format!("has elements of type {}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        Ok((name, dtype, info.shape.clone(), Layout::InOrder(data + start..data + end)))
    });
    found.collect()
}

fn dtype(stored: Stored) -> Option<Dtype> {
    Some(match stored {
        Stored::BOOL => Dtype::Bool,
        Stored::U8 => Dtype::U8,
        Stored::I8 => Dtype::I8,
        Stored::I16 => Dtype::I16,
        Stored::I32 => Dtype::I32,
        Stored::I64 => Dtype::I64,
        Stored::F16 => Dtype::F16,
        Stored::BF16 => Dtype::Bf16,
        Stored::F32 => Dtype::F32,
        Stored::F64 => Dtype::F64,
        _ => return None,
    })
}

/// The name of a type in safetensors.
pub(crate) fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::Bool => Stored::BOOL,
        Dtype::U8 => Stored::U8,
        Dtype::I8 => Stored::I8,
        Dtype::I16 => Stored::I16,
        Dtype::I32 => Stored::I32,
        Dtype::I64 => Stored::I64,
        Dtype::F16 => Stored::F16,
        Dtype::Bf16 => Stored::BF16,
        Dtype::F32 => Stored::F32,
        Dtype::F64 => Stored::F64,
    }
}
