use std::collections::HashMap;

use super::globals::Global;
use super::reader::{PickleReader, parse_utf8};
use super::value::{Storage, TensorView, Value, ValueIndex, Values};
use super::{MAX_VALUES, PickleError, opcode as op};
use crate::tensor::Dtype;

/// Maximal number of dimensions of a tensor: limits the cost of a long tuple that many tensors use
/// as their shape.
const MAX_DIMENSIONS: usize = 8;
/// The latest supported version of the pickle protocol.
const MAX_PROTOCOL: u8 = 5;

/// Runs a pickle to its `STOP`. Returns all values, and the index of the result.
pub fn run(bytes: &[u8]) -> Result<(Values<'_>, ValueIndex), PickleError> {
    let mut unpickler = Unpickler {
        reader: PickleReader::new(bytes),
        values: Values::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        match unpickler.reader.byte()? {
            op::STOP => break,
            opcode => unpickler.execute(opcode)?,
        }
    }
    let root = unpickler.pop()?;
    Ok((unpickler.values, root))
}

/// The stack machine of pickles. Each opcode pushes, stores or marks at most one value, so the
/// length of the pickle limits the memory.
struct Unpickler<'a> {
    reader: PickleReader<'a>,
    values: Values<'a>,
    stack: Vec<ValueIndex>,
    /// The height of the stack at each mark.
    marks: Vec<usize>,
    memo: HashMap<usize, ValueIndex>,
}

impl<'a> Unpickler<'a> {
    fn execute(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::PROTO if self.reader.byte()? > MAX_PROTOCOL => {
                Err(PickleError::Malformed("its protocol is newer than 5"))
            }
            op::PROTO => Ok(()),
            // Frames are hints for reading ahead, which is not needed.
            op::FRAME => self.reader.byte_array::<8>().map(drop),
            op::MARK => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            op::POP | op::POP_MARK | op::DUP => self.execute_stack_opcode(opcode),
            op::BINGET | op::LONG_BINGET => self.get_memo(opcode),
            op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.put_memo(opcode),
            op::NONE | op::BINFLOAT | op::SHORT_BINBYTES | op::BINBYTES | op::BINBYTES8 | op::BYTEARRAY8 => {
                self.push_opaque(opcode)
            }
            op::NEWTRUE | op::NEWFALSE | op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::LONG4 => {
                self.push_integer(opcode)
            }
            op::SHORT_BINUNICODE => self.push_text::<1>(),
            op::BINUNICODE => self.push_text::<4>(),
            op::BINUNICODE8 => self.push_text::<8>(),
            op::SHORT_BINSTRING => self.push_text::<1>(),
            op::BINSTRING => self.push_text::<4>(),
            op::EMPTY_TUPLE | op::TUPLE1 | op::TUPLE2 | op::TUPLE3 | op::TUPLE => self.push_tuple(opcode),
            op::EMPTY_LIST | op::EMPTY_SET => self.push(Value::List(Vec::new())),
            op::EMPTY_DICT => self.push(Value::Dict(Vec::new())),
            op::LIST | op::FROZENSET => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items))
            }
            op::DICT => {
                let items = pairs(&self.pop_to_mark()?)?;
                self.push(Value::Dict(items))
            }
            op::APPEND | op::APPENDS | op::ADDITEMS => self.append(opcode),
            op::SETITEM | op::SETITEMS => self.set_items(opcode),
            op::GLOBAL => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                self.push(Value::Global(Global::resolve(module, name)?))
            }
            op::STACK_GLOBAL => self.stack_global(),
            op::BINPERSID => self.load_persistent_id(),
            op::REDUCE => self.reduce(),
            op::NEWOBJ => self.new_object(),
            op::BUILD => self.build(),
            // Always refused; the error names the global, unless pickles may refer to it.
            op::INST => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                Global::resolve(module, name).and(Err(PickleError::ForbiddenOpcode(opcode)))
            }
            _ => Err(PickleError::ForbiddenOpcode(opcode)),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), PickleError> {
        let index = self.values.add(value)?;
        self.stack.push(index);
        Ok(())
    }

    /// Whether the stack is empty above the last mark.
    fn is_empty(&self) -> bool {
        self.stack.len() <= self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<ValueIndex, PickleError> {
        self.stack.last().copied().filter(|_| !self.is_empty()).ok_or(PickleError::Malformed("the stack is empty"))
    }

    fn pop(&mut self) -> Result<ValueIndex, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Pops the last `N` values; returns them in the order in which they were pushed.
    fn pop_last<const N: usize>(&mut self) -> Result<[ValueIndex; N], PickleError> {
        let mut last = [Values::OPAQUE; N];
        for value in last.iter_mut().rev() {
            *value = self.pop()?;
        }
        Ok(last)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<ValueIndex>, PickleError> {
        let mark = self.marks.pop().ok_or(PickleError::Malformed("there is no mark"))?;
        Ok(self.stack.drain(mark.min(self.stack.len())..).collect())
    }

    fn execute_stack_opcode(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            // On a mark, `POP` removes the mark, as in Python.
            op::POP if !self.is_empty() => self.pop().map(drop),
            _ => self.pop_to_mark().map(drop),
        }
    }

    fn get_memo(&mut self, opcode: u8) -> Result<(), PickleError> {
        let index = self.read_memo_index(opcode == op::LONG_BINGET)?;
        let value =
            self.memo.get(&index).ok_or(PickleError::Malformed("it reads a memo entry that was never written"))?;
        self.stack.push(*value);
        Ok(())
    }

    fn put_memo(&mut self, opcode: u8) -> Result<(), PickleError> {
        let index = match opcode {
            op::MEMOIZE => self.memo.len(),
            opcode => self.read_memo_index(opcode == op::LONG_BINPUT)?,
        };
        let top = self.top()?;
        self.memo.insert(index, top);
        if self.memo.len() > MAX_VALUES { Err(PickleError::TooMany("memo entries")) } else { Ok(()) }
    }

    fn read_memo_index(&mut self, is_long: bool) -> Result<usize, PickleError> {
        if !is_long {
            return self.reader.byte().map(usize::from);
        }
        usize::try_from(u32::from_le_bytes(self.reader.byte_array()?)).map_err(|_| PickleError::Truncated)
    }

    fn push_opaque(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::BINFLOAT => self.reader.take(8)?,
            op::SHORT_BINBYTES => self.reader.length_prefixed::<1>()?,
            op::BINBYTES => self.reader.length_prefixed::<4>()?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.reader.length_prefixed::<8>()?,
            _ => &[],
        };
        self.stack.push(Values::OPAQUE);
        Ok(())
    }

    fn push_integer(&mut self, opcode: u8) -> Result<(), PickleError> {
        let integer = match opcode {
            op::NEWTRUE => Some(1),
            op::NEWFALSE => Some(0),
            op::BININT => Some(i64::from(i32::from_le_bytes(self.reader.byte_array()?))),
            op::BININT1 => Some(i64::from(self.reader.byte()?)),
            op::BININT2 => Some(i64::from(u16::from_le_bytes(self.reader.byte_array()?))),
            op::LONG1 => parse_long(self.reader.length_prefixed::<1>()?),
            _ => parse_long(self.reader.length_prefixed::<4>()?),
        };
        match integer {
            Some(integer) => self.push(Value::Integer(integer)),
            None => {
                self.stack.push(Values::OPAQUE);
                Ok(())
            }
        }
    }

    fn push_text<const N: usize>(&mut self) -> Result<(), PickleError> {
        let text = parse_utf8(self.reader.length_prefixed::<N>()?)?;
        self.push(Value::Text(text))
    }

    fn push_tuple(&mut self, opcode: u8) -> Result<(), PickleError> {
        let items = match opcode {
            op::EMPTY_TUPLE => Vec::new(),
            op::TUPLE1 => self.pop_last::<1>()?.to_vec(),
            op::TUPLE2 => self.pop_last::<2>()?.to_vec(),
            op::TUPLE3 => self.pop_last::<3>()?.to_vec(),
            _ => self.pop_to_mark()?,
        };
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, opcode: u8) -> Result<(), PickleError> {
        let new = if opcode == op::APPEND { vec![self.pop()?] } else { self.pop_to_mark()? };
        let list = self.top()?;
        match self.values.get_mut(list) {
            Some(Value::List(items)) => {
                items.extend(new);
                Ok(())
            }
            _ => Err(PickleError::Malformed("it appends to a value that is not a list")),
        }
    }

    fn set_items(&mut self, opcode: u8) -> Result<(), PickleError> {
        let new = if opcode == op::SETITEM { self.pop_last::<2>()?.to_vec() } else { self.pop_to_mark()? };
        let new = pairs(&new)?;
        let dict = self.top()?;
        match self.values.get_mut(dict) {
            Some(Value::Dict(items)) => {
                items.extend(new);
                Ok(())
            }
            _ => Err(PickleError::Malformed("it sets items of a value that is not a dictionary")),
        }
    }

    fn stack_global(&mut self) -> Result<(), PickleError> {
        let [module, name] = self.pop_last()?;
        match (self.values.get(module), self.values.get(name)) {
            (Value::Text(module), Value::Text(name)) => self.push(Value::Global(Global::resolve(module, name)?)),
            _ => Err(PickleError::Malformed("the name of a global is not a text")),
        }
    }

    /// Handles the persistent id `("storage", storage type, key, device, elements)` of a storage.
    fn load_persistent_id(&mut self) -> Result<(), PickleError> {
        let malformed = PickleError::Malformed("a persistent id is not a storage as PyTorch writes it");
        let id = self.pop()?;
        let Value::Tuple(id) = self.values.get(id) else { return Err(malformed) };
        let &[tag, storage_type, key, _, elements] = id.as_slice() else { return Err(malformed) };
        let fields = [tag, storage_type, key, elements].map(|field| self.values.get(field));
        let [Value::Text("storage"), Value::Global(Global::StorageType(dtype)), Value::Text(key), elements] = fields
        else {
            return Err(malformed);
        };
        let storage = Storage { dtype: *dtype, key, elements: as_size(elements)? };
        self.push(Value::Storage(storage))
    }

    fn reduce(&mut self) -> Result<(), PickleError> {
        let [function, arguments] = self.pop_last()?;
        let malformed = PickleError::Malformed("it calls a value that is not a function, or with invalid arguments");
        let (Value::Global(global), Value::Tuple(arguments)) = (self.values.get(function), self.values.get(arguments))
        else {
            return Err(malformed);
        };
        let result = match (global, arguments.as_slice()) {
            (Global::FirstArgument, &[first, ..]) => {
                self.stack.push(first);
                return Ok(());
            }
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                Value::Tensor(self.rebuild_tensor([storage, offset, shape, strides], None)?)
            }
            (Global::RebuildTypedTensor, &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                Value::Tensor(self.rebuild_tensor([storage, offset, shape, strides], Some(dtype))?)
            }
            (Global::Opaque, _) => Value::Opaque,
            (Global::TorchScriptClass, _) => Value::Object(None),
            _ => return Err(malformed),
        };
        self.push(result)
    }

    fn rebuild_tensor(
        &self,
        [storage, offset, shape, strides]: [ValueIndex; 4],
        dtype: Option<ValueIndex>,
    ) -> Result<TensorView<'a>, PickleError> {
        let Value::Storage(storage) = self.values.get(storage) else {
            return Err(PickleError::Malformed("a tensor has no storage"));
        };
        let dtype = match dtype.map(|dtype| self.values.get(dtype)) {
            None => storage.dtype,
            Some(Value::Global(Global::Dtype(dtype))) => Some(*dtype),
            Some(_) => None,
        };
        let dtype = dtype.ok_or(PickleError::Malformed("a tensor has no type"))?;
        let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
        if shape.len() != strides.len() {
            return Err(PickleError::Malformed("the number of a tensor's strides differs from that of its dimensions"));
        }
        let storage_bytes = storage.elements.checked_mul(storage.dtype.map_or(1, Dtype::size));
        Ok(TensorView {
            dtype,
            key: storage.key,
            storage_bytes,
            offset: as_size(self.values.get(offset))?,
            shape,
            strides,
        })
    }

    fn sizes(&self, index: ValueIndex) -> Result<Vec<usize>, PickleError> {
        let (Value::Tuple(sizes) | Value::List(sizes)) = self.values.get(index) else {
            return Err(PickleError::Malformed("a shape is not a tuple"));
        };
        if sizes.len() > MAX_DIMENSIONS {
            return Err(PickleError::Malformed("a tensor has more than 8 dimensions"));
        }
        sizes.iter().map(|&size| as_size(self.values.get(size))).collect()
    }

    fn new_object(&mut self) -> Result<(), PickleError> {
        let [class, _] = self.pop_last()?;
        match self.values.get(class) {
            Value::Global(Global::TorchScriptClass) => self.push(Value::Object(None)),
            Value::Global(Global::OrderedDict) => self.push(Value::Dict(Vec::new())),
            _ => Err(PickleError::Malformed("it creates an instance of a value that is not a class")),
        }
    }

    fn build(&mut self) -> Result<(), PickleError> {
        let state = self.pop()?;
        let top = self.top()?;
        match self.values.get_mut(top) {
            Some(Value::Object(attributes)) => {
                *attributes = Some(state);
                Ok(())
            }
            // A state dict has attributes, the version numbers of its modules, which are ignored.
            Some(Value::Dict(_)) => Ok(()),
            _ => Err(PickleError::Malformed("it sets attributes of a value that has none")),
        }
    }
}

fn pairs(items: &[ValueIndex]) -> Result<Vec<(ValueIndex, ValueIndex)>, PickleError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err(PickleError::Malformed("a key has no value"))
    }
}

fn as_size(value: &Value<'_>) -> Result<usize, PickleError> {
    match value {
        Value::Integer(integer) => usize::try_from(*integer).map_err(|_| PickleError::Malformed("a size is negative")),
        _ => Err(PickleError::Malformed("a size is not an integer")),
    }
}

/// A little-endian integer in two's complement, of any length; none if it has more than 64 bits.
fn parse_long(bytes: &[u8]) -> Option<i64> {
    let sign_extension = if bytes.last().is_some_and(|&last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut extended = [sign_extension; 8];
    extended.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(extended))
}
