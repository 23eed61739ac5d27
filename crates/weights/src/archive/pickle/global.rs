//! The names that a pickle may refer to.

use super::PickleError;
use crate::error::printable;
use crate::tensor::Dtype;

/// The meaning of a name in a pickle. None of them executes Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// Creates an empty dictionary.
    OrderedDict,
    /// Creates a tensor of its storage's type.
    RebuildTensor,
    /// Creates a tensor of an explicit type.
    RebuildTypedTensor,
    /// Returns its first argument: parameters are treated as tensors, sets and typed lists as
    /// lists.
    First,
    /// Creates a value that contains no weights.
    Opaque,
    /// The type of a storage; none for an untyped one.
    Storage(Option<Dtype>),
    /// The type of a tensor.
    Dtype(Dtype),
    /// A TorchScript class.
    Class,
}

impl Global {
    /// The meaning of `module.name`.
    ///
    /// # Errors
    /// The name is not on the list; the message names it.
    pub fn named(module: &str, name: &str) -> Result<Self, PickleError> {
        let found = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTypedTensor),
            ("torch._utils", "_rebuild_parameter") | ("torch", "Size") => Some(Self::First),
            (
                "torch.jit._pickle",
                "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist" | "restore_type_tag",
            ) => Some(Self::First),
            ("builtins" | "__builtin__", "set" | "frozenset") => Some(Self::First),
            // Protocol 2 writes bytes in this way.
            ("torch", "device") | ("_codecs", "encode") => Some(Self::Opaque),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::Storage(None)),
            ("torch", name) => storage(name).map(|dtype| Self::Storage(Some(dtype))).or_else(|| dtype(name)),
            (module, _) if module == "__torch__" || module.starts_with("__torch__.") => Some(Self::Class),
            _ => None,
        };
        found.ok_or_else(|| PickleError::Asked(printable(&format!("{module}.{name}"))))
    }
}

fn storage(name: &str) -> Option<Dtype> {
    match name {
        "BoolStorage" => Some(Dtype::Bool),
        "ByteStorage" => Some(Dtype::U8),
        "CharStorage" => Some(Dtype::I8),
        "ShortStorage" => Some(Dtype::I16),
        "IntStorage" => Some(Dtype::I32),
        "LongStorage" => Some(Dtype::I64),
        "HalfStorage" => Some(Dtype::F16),
        "BFloat16Storage" => Some(Dtype::Bf16),
        "FloatStorage" => Some(Dtype::F32),
        "DoubleStorage" => Some(Dtype::F64),
        _ => None,
    }
}

fn dtype(name: &str) -> Option<Global> {
    let dtype = match name {
        "bool" => Dtype::Bool,
        "uint8" => Dtype::U8,
        "int8" => Dtype::I8,
        "int16" => Dtype::I16,
        "int32" => Dtype::I32,
        "int64" => Dtype::I64,
        "float16" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float32" => Dtype::F32,
        "float64" => Dtype::F64,
        _ => return None,
    };
    Some(Global::Dtype(dtype))
}
