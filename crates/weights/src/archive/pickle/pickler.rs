//! Writes pickles as PyTorch does (`torch/serialization.py`): state dicts, and any other content
//! for tests.

use super::opcode as op;

/// Writes a pickle opcode by opcode.
#[derive(Clone)]
pub struct Pickler(Vec<u8>);

/// A tensor as a view of a storage, as PyTorch writes it.
#[derive(Clone, Copy)]
pub struct StorageView<'a> {
    /// The name of the storage's class in `torch`, such as `FloatStorage`.
    pub class: &'a str,
    /// The name of the storage's file in the archive, below `data/`.
    pub key: &'a str,
    /// The number of elements of the storage.
    pub elements: i64,
    /// The offset of the tensor's first element, in elements.
    pub offset: i64,
    pub shape: &'a [i64],
    /// The strides in elements, one per dimension.
    pub strides: &'a [i64],
}

impl Pickler {
    pub fn new() -> Self {
        Self(vec![op::PROTO, 2])
    }

    pub fn op(mut self, opcode: u8) -> Self {
        self.0.push(opcode);
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn text(self, text: &str) -> Self {
        self.op(op::BINUNICODE).bytes(&(text.len() as u32).to_le_bytes()).bytes(text.as_bytes())
    }

    /// The Python function or class `module.name`.
    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(op::GLOBAL).bytes(format!("{module}\n{name}\n").as_bytes())
    }

    pub fn integer(self, integer: i64) -> Self {
        self.op(op::LONG1).bytes(&[8]).bytes(&integer.to_le_bytes())
    }

    /// A tuple of integers.
    pub fn sizes(self, sizes: &[i64]) -> Self {
        sizes.iter().fold(self.op(op::MARK), |pickle, &size| pickle.integer(size)).op(op::TUPLE)
    }

    /// A storage, as the persistent id that PyTorch writes for it.
    pub fn storage(self, class: &str, key: &str, elements: i64) -> Self {
        let pickle = self.op(op::MARK).text("storage").global("torch", class).text(key).text("cpu").integer(elements);
        pickle.op(op::TUPLE).op(op::BINPERSID)
    }

    pub fn tensor(self, StorageView { class, key, elements, offset, shape, strides }: StorageView<'_>) -> Self {
        let pickle = self.global("torch._utils", "_rebuild_tensor_v2").op(op::MARK).storage(class, key, elements);
        let pickle = pickle.integer(offset).sizes(shape).sizes(strides).op(op::NEWFALSE);
        pickle.global("collections", "OrderedDict").op(op::EMPTY_TUPLE).op(op::REDUCE).op(op::TUPLE).op(op::REDUCE)
    }

    /// A dictionary of tensors.
    pub fn state_dict(self, views: &[(&str, StorageView<'_>)]) -> Self {
        let pickle = self.op(op::EMPTY_DICT).op(op::MARK);
        views.iter().fold(pickle, |pickle, (name, view)| pickle.text(name).tensor(*view)).op(op::SETITEMS)
    }

    pub fn finish(self) -> Vec<u8> {
        self.op(op::STOP).0
    }
}
