//! The globals, that is, Python functions and classes by name, that a pickle may refer to.

use super::PickleError;
use crate::error::printable;
use crate::tensor::Dtype;

/// A permitted global of a pickle. No permitted global executes Python.
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
    FirstArgument,
    /// Creates a value that contains no weights.
    Opaque,
    /// The class of a storage, as the type of its elements; none for an untyped storage.
    StorageType(Option<Dtype>),
    /// The type of a tensor's elements.
    Dtype(Dtype),
    /// A TorchScript class.
    TorchScriptClass,
}

impl Global {
    /// The global `module.name`.
    ///
    /// # Errors
    /// The global is not permitted; the message names it.
    pub fn resolve(module: &str, name: &str) -> Result<Self, PickleError> {
        let global = match (module, name) {
            ("collections", "OrderedDict") => Some(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Some(Self::RebuildTensor),
            ("torch._utils", "_rebuild_tensor_v3") => Some(Self::RebuildTypedTensor),
            ("torch._utils", "_rebuild_parameter") | ("torch", "Size") => Some(Self::FirstArgument),
            (
                "torch.jit._pickle",
                "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist" | "restore_type_tag",
            ) => Some(Self::FirstArgument),
            ("builtins" | "__builtin__", "set" | "frozenset") => Some(Self::FirstArgument),
            // Protocol 2 encodes bytes as a call of `_codecs.encode`.
            ("torch", "device") | ("_codecs", "encode") => Some(Self::Opaque),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::StorageType(None)),
            ("torch", name) => {
                storage_dtype(name).map(|dtype| Self::StorageType(Some(dtype))).or_else(|| dtype_global(name))
            }
            (module, _) if module == "__torch__" || module.starts_with("__torch__.") => Some(Self::TorchScriptClass),
            _ => None,
        };
        global.ok_or_else(|| PickleError::ForbiddenGlobal(printable(&format!("{module}.{name}"))))
    }
}

fn storage_dtype(name: &str) -> Option<Dtype> {
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

fn dtype_global(name: &str) -> Option<Global> {
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
