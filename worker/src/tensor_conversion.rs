//! Conversions between the tensors of weight files and libtorch's tensors.

use std::borrow::Cow;
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use weights::Dtype;

/// Converts tensors of a file, by name. Shapes and types stay the same.
#[must_use]
pub fn from_weights(tensors: Vec<(String, weights::Tensor<'_>)>) -> BTreeMap<String, Tensor> {
    let convert = |tensor: &weights::Tensor<'_>| {
        let shape: Vec<i64> = tensor.shape.iter().map(|&length| length as i64).collect();
        Tensor::from_data_size(&tensor.bytes, &shape, tensor_kind(tensor.dtype))
    };
    tensors.into_iter().map(|(name, stored)| (name, convert(&stored))).collect()
}

/// Converts a tensor to f32 for a file. The shape stays the same.
#[must_use]
pub fn to_weights(tensor: &Tensor) -> weights::Tensor<'static> {
    let tensor = tensor.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    weights::Tensor {
        dtype: Dtype::F32,
        shape: tensor.size().iter().map(|&length| length as usize).collect(),
        bytes: Cow::Owned(to_bytes(&tensor)),
    }
}

/// The bytes of a tensor's values, in row-major order.
#[must_use]
pub fn to_bytes(tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.contiguous().copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

fn tensor_kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::Bool => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::Bf16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
    }
}
