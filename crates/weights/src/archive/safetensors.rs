//! Hugging Face's safetensors. The crate of that name checks that tensors neither overlap nor leave
//! gaps.

use std::path::Path;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::Dtype as SafetensorsDtype;

use super::LocatedTensor;
use super::layout::Layout;
use crate::error::Error;
use crate::tensor::Dtype;

/// The tensors of the file `path`, whose content is `bytes`.
pub fn locate_tensors(path: &Path, bytes: &[u8]) -> Result<Vec<LocatedTensor>, Error> {
    let (header_bytes, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| Error::invalid(path, error))?;
    // The length of the header precedes it, in eight bytes.
    let data_start = 8 + header_bytes;
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let dtype = from_safetensors_dtype(info.dtype)
            .ok_or_else(|| Error::tensor(path, &name, format!("has elements of type {}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let layout = Layout::Contiguous(data_start + start..data_start + end);
        Ok(LocatedTensor { name, dtype, shape: info.shape.clone(), layout })
    });
    tensors.collect()
}

fn from_safetensors_dtype(dtype: SafetensorsDtype) -> Option<Dtype> {
    Some(match dtype {
        SafetensorsDtype::BOOL => Dtype::Bool,
        SafetensorsDtype::U8 => Dtype::U8,
        SafetensorsDtype::I8 => Dtype::I8,
        SafetensorsDtype::I16 => Dtype::I16,
        SafetensorsDtype::I32 => Dtype::I32,
        SafetensorsDtype::I64 => Dtype::I64,
        SafetensorsDtype::F16 => Dtype::F16,
        SafetensorsDtype::BF16 => Dtype::Bf16,
        SafetensorsDtype::F32 => Dtype::F32,
        SafetensorsDtype::F64 => Dtype::F64,
        _ => return None,
    })
}

/// The safetensors type of elements.
pub(crate) fn to_safetensors_dtype(dtype: Dtype) -> SafetensorsDtype {
    match dtype {
        Dtype::Bool => SafetensorsDtype::BOOL,
        Dtype::U8 => SafetensorsDtype::U8,
        Dtype::I8 => SafetensorsDtype::I8,
        Dtype::I16 => SafetensorsDtype::I16,
        Dtype::I32 => SafetensorsDtype::I32,
        Dtype::I64 => SafetensorsDtype::I64,
        Dtype::F16 => SafetensorsDtype::F16,
        Dtype::Bf16 => SafetensorsDtype::BF16,
        Dtype::F32 => SafetensorsDtype::F32,
        Dtype::F64 => SafetensorsDtype::F64,
    }
}
