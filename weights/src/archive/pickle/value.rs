use super::{Fault, MOST_VALUES, global::Global};
use crate::tensor::Dtype;

/// What the machine makes. Values refer to each other by number, so that they can be nested to any depth, and in circles, and
/// still be dropped without recursion.
#[derive(Debug)]
pub enum Value<'a> {
    /// Something that names no weights: a number with a fraction, bytes, a device.
    Opaque,
    /// A boolean or an integer; those of more than 64 bits are opaque.
    Integer(i64),
    Text(&'a str),
    Tuple(Vec<Ref>),
    /// A list or a set.
    List(Vec<Ref>),
    /// Pairs in order; of equal keys the last one counts.
    Dict(Vec<(Ref, Ref)>),
    Global(Global),
    Storage(Storage<'a>),
    Tensor(View<'a>),
    /// An instance of a TorchScript class and, once it is built, its attributes.
    Object(Option<Ref>),
}

/// A stretch of memory that tensors are views of.
#[derive(Clone, Copy, Debug)]
pub struct Storage<'a> {
    /// Type of the elements, unless that is left to the tensors.
    pub dtype: Option<Dtype>,
    /// Name of its entry in the archive.
    pub key: &'a str,
    /// How many elements it has; bytes, where it has no type.
    pub elements: usize,
}

/// A tensor as a pickle describes it: nothing of it has been checked against the storage yet.
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub dtype: Dtype,
    /// Name of the storage's entry in the archive.
    pub key: &'a str,
    /// Bytes that the storage should have, or none if no memory could hold it.
    pub storage_bytes: Option<usize>,
    /// In elements.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// In elements; as many as dimensions.
    pub strides: Vec<usize>,
}

/// Number of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ref(usize);

/// All values of a pickle.
pub struct Values<'a>(Vec<Value<'a>>);

impl<'a> Values<'a> {
    /// Shared by all opaque values, which cost nothing that way.
    pub const OPAQUE: Ref = Ref(0);

    pub fn new() -> Self {
        Self(vec![Value::Opaque])
    }

    pub fn add(&mut self, value: Value<'a>) -> Result<Ref, Fault> {
        if self.0.len() >= MOST_VALUES {
            return Err(Fault::TooMany("values"));
        }
        self.0.push(value);
        Ok(Ref(self.0.len() - 1))
    }

    pub fn get(&self, of: Ref) -> &Value<'a> {
        self.0.get(of.0).unwrap_or(&Value::Opaque)
    }

    pub fn get_mut(&mut self, of: Ref) -> Option<&mut Value<'a>> {
        self.0.get_mut(of.0)
    }
}
