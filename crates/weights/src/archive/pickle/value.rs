use super::{MAX_VALUES, PickleError, globals::Global};
use crate::tensor::Dtype;

/// A value that a pickle creates. Values refer to each other by index, so that they can be nested
/// to any depth, and in cycles, and still be dropped without recursion.
#[derive(Debug)]
pub enum Value<'a> {
    /// A value without weights: a float, bytes, a device.
    Opaque,
    /// A boolean or an integer; integers of more than 64 bits are opaque.
    Integer(i64),
    Text(&'a str),
    Tuple(Vec<ValueIndex>),
    /// A list or a set.
    List(Vec<ValueIndex>),
    /// Pairs in order. If keys are equal, the last pair is used.
    Dict(Vec<(ValueIndex, ValueIndex)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(TensorView<'a>),
    /// An instance of a TorchScript class, with its attributes after `BUILD`.
    Object(Option<ValueIndex>),
}

/// A block of memory that tensors are views of.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// The type of the elements; none for an untyped storage, whose tensors define it.
    pub dtype: Option<Dtype>,
    /// The name of the storage's file in the archive, below `data/`.
    pub key: &'a str,
    /// The number of elements; for an untyped storage, the number of bytes.
    pub elements: usize,
}

/// A tensor as described by a pickle. It is not checked against the storage yet.
#[derive(Clone, Debug)]
pub struct TensorView<'a> {
    pub dtype: Dtype,
    /// The name of the storage's file in the archive, below `data/`.
    pub key: &'a str,
    /// The expected size of the storage in bytes; none if it exceeds the address space.
    pub storage_bytes: Option<usize>,
    /// The offset of the first element from the beginning of the storage, in elements.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// The strides in elements, one per dimension.
    pub strides: Vec<usize>,
}

/// The index of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueIndex(usize);

/// All values of a pickle.
pub struct Values<'a>(Vec<Value<'a>>);

impl<'a> Values<'a> {
    /// The index of an opaque value that many places share, so that these need no memory.
    pub const OPAQUE: ValueIndex = ValueIndex(0);

    pub fn new() -> Self {
        Self(vec![Value::Opaque])
    }

    pub fn add(&mut self, value: Value<'a>) -> Result<ValueIndex, PickleError> {
        if self.0.len() >= MAX_VALUES {
            return Err(PickleError::TooMany("values"));
        }
        self.0.push(value);
        Ok(ValueIndex(self.0.len() - 1))
    }

    pub fn get(&self, index: ValueIndex) -> &Value<'a> {
        self.0.get(index.0).unwrap_or(&Value::Opaque)
    }

    pub fn get_mut(&mut self, index: ValueIndex) -> Option<&mut Value<'a>> {
        self.0.get_mut(index.0)
    }
}
