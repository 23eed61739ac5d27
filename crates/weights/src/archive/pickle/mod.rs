//! Pickles that contain tensors.
//!
//! A pickle is a program for a stack machine; Python's machine lets it call anything. This one
//! ([`machine`]) calls only what is on a list ([`global`]): tensors, plain containers and
//! TorchScript's modules. It refuses everything else, by name. The opcodes are those of Python's
//! `pickletools`; tensors are encoded as in PyTorch's `torch/serialization.py`, `torch/_utils.py`
//! and `torch/csrc/jit/serialization/pickler.cpp`.

pub mod assembler;
mod global;
mod machine;
pub mod opcode;
mod reader;
mod search;
mod value;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

pub(super) use value::View;

/// Maximal size of a pickle in bytes: a state dict has some hundred bytes per tensor.
const MAX_BYTES: usize = 16 << 20;
/// Maximal number of values that a pickle may create.
const MAX_VALUES: usize = 1 << 20;
/// Maximal number of tensors and modules that a pickle may name.
const MAX_NAMES: usize = 1 << 16;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PickleError {
    #[error("the pickle ends too early")]
    Truncated,
    #[error(
        "the pickle is longer than {MAX_BYTES} bytes: save a state dict alone, without the rest of a training's state"
    )]
    TooLong,
    #[error("the pickle makes too many {0}: save a state dict alone, without the rest of a training's state")]
    TooMany(&'static str),
    #[error("refused: the pickle asks for {0}, which is no tensor; save a state dict of tensors alone")]
    Asked(String),
    #[error("refused: the pickle has opcode {0:#04x}, with which PyTorch saves no tensor")]
    Opcode(u8),
    #[error("the pickle is malformed: {0}")]
    Malformed(&'static str),
    #[error(
        "holds no tensors by name: a state dict is looked for at the top, under \"state_dict\" and under \"model\""
    )]
    NoTensors,
}

/// The tensors of a pickle, by name.
///
/// They are searched for in a dictionary at the top, under `state_dict` or under `model`, or in the
/// attributes of a TorchScript module, where a name is the path of attributes.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, View<'_>>, PickleError> {
    if bytes.len() > MAX_BYTES {
        return Err(PickleError::TooLong);
    }
    let (values, root) = machine::run(bytes)?;
    search::named_tensors(&values, root)
}
