//! The names that a pickle may ask for.

use super::Fault;
use crate::error::printable;
use crate::tensor::Dtype;

/// What a name in a pickle stands for. None of it is ever Python.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// Makes an empty dictionary.
    OrderedDict,
    /// Makes a tensor of its storage's type.
    RebuildTensor,
    /// Makes a tensor of a type of its own.
    RebuildTypedTensor,
    /// Gives its first argument back: parameters are to us what tensors are, sets and lists with a type what lists are.
    First,
    /// Makes something that names no weights.
    Opaque,
    /// Type of a storage; none is the one without.
    Storage(Option<Dtype>),
    /// Type of a tensor.
    Dtype(Dtype),
    /// A TorchScript class.
    Class,
}

impl Global {
    /// What `module.name` stands for.
    ///
    /// # Errors
    /// Refuses, by name, what is not on the list.
    pub fn named(module: &str, name: &str) -> Result<Self, Fault> {
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
            // How protocol 2 writes bytes.
            ("torch", "device") | ("_codecs", "encode") => Some(Self::Opaque),
            ("torch" | "torch.storage", "UntypedStorage") => Some(Self::Storage(None)),
            ("torch", name) => storage(name).map(|dtype| Self::Storage(Some(dtype))).or_else(|| dtype(name)),
            (module, _) if module == "__torch__" || module.starts_with("__torch__.") => Some(Self::Class),
            _ => None,
        };
        found.ok_or_else(|| Fault::Asked(printable(&format!("{module}.{name}"))))
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
