//! Pickles that contain tensors.
//!
//! A pickle is a program for a stack machine. Python's machine can call any function. This one
//! ([`unpickler`]) calls only the globals of a list ([`globals`]): tensors, plain containers and
//! TorchScript modules. It refuses all other globals. The opcodes are those of Python's
//! `pickletools`; tensors are encoded as in PyTorch's `torch/serialization.py`, `torch/_utils.py`
//! and `torch/csrc/jit/serialization/pickler.cpp`.
//!
//! | module | content |
//! |---|---|
//! | `unpickler` | the stack machine |
//! | `reader`, `opcode`, `globals`, `value` | the bytes, opcodes, permitted globals and values of a pickle |
//! | `tensor_search` | finds the tensors in the values |
//! | `pickler` | writes pickles |

mod globals;
pub mod opcode;
pub mod pickler;
mod reader;
mod tensor_search;
mod unpickler;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(super) use value::TensorView;

/// Maximal size of a pickle in bytes: a state dict has some hundred bytes per tensor.
const MAX_PICKLE_BYTES: usize = 16 << 20;
/// Maximal number of values that a pickle may create; also of its memo entries, and of the module
/// attributes that the search for tensors visits.
const MAX_VALUES: usize = 1 << 20;
/// Maximal number of tensors and modules of a pickle.
const MAX_TENSORS_AND_MODULES: usize = 1 << 16;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PickleError {
    #[error("the pickle ends too early")]
    Truncated,
    #[error(
        "the pickle is longer than {MAX_PICKLE_BYTES} bytes: save only a state dict, without optimizer and trainer state"
    )]
    TooLong,
    #[error("the pickle has too many {0}: save only a state dict, without optimizer and trainer state")]
    TooMany(&'static str),
    #[error("refused: the pickle refers to the global {0}, which no tensor needs; save only a state dict of tensors")]
    ForbiddenGlobal(String),
    #[error("refused: the pickle has opcode {0:#04x}, which PyTorch does not use for tensors")]
    ForbiddenOpcode(u8),
    #[error("the pickle is malformed: {0}")]
    Malformed(&'static str),
    #[error("has no named tensors: a state dict has to be at the top, under \"state_dict\" or under \"model\"")]
    NoTensors,
}

/// The tensors of a pickle, by name.
///
/// They are in a dictionary at the top, under `state_dict` or under `model`, or in the attributes
/// of a TorchScript module, where a name is the path of attributes.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, TensorView<'_>>, PickleError> {
    if bytes.len() > MAX_PICKLE_BYTES {
        return Err(PickleError::TooLong);
    }
    let (values, root) = unpickler::run(bytes)?;
    tensor_search::named_tensors(&values, root)
}
