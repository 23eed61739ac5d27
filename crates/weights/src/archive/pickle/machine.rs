use std::collections::HashMap;

use super::global::Global;
use super::reader::{Reader, text};
use super::value::{Ref, Storage, Value, Values, View};
use super::{MAX_VALUES, PickleError, opcode as op};
use crate::tensor::Dtype;

/// Maximal number of dimensions of a tensor: limits the cost of a long tuple that many tensors use
/// as their shape.
const MAX_DIMENSIONS: usize = 8;
/// The latest supported protocol.
const PROTOCOL: u8 = 5;

/// Runs a pickle to its end. Returns all values, and the result.
pub fn run(bytes: &[u8]) -> Result<(Values<'_>, Ref), PickleError> {
    let mut machine = Machine {
        reader: Reader::new(bytes),
        values: Values::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
    };
    loop {
        match machine.reader.byte()? {
            op::STOP => break,
            opcode => machine.step(opcode)?,
        }
    }
    let root = machine.pop()?;
    Ok((machine.values, root))
}

/// The stack machine of pickles. Each opcode pushes, stores or marks at most one value, so the
/// length of the pickle bounds memory.
struct Machine<'a> {
    reader: Reader<'a>,
    values: Values<'a>,
    stack: Vec<Ref>,
    /// The stack heights of marks.
    marks: Vec<usize>,
    memo: HashMap<usize, Ref>,
}

impl<'a> Machine<'a> {
    fn step(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::PROTO if self.reader.byte()? > PROTOCOL => Err(PickleError::Malformed("its protocol is newer than 5")),
            op::PROTO => Ok(()),
            // Frames are hints for reading ahead, which is not needed.
            op::FRAME => self.reader.array::<8>().map(drop),
            op::MARK => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            op::POP | op::POP_MARK | op::DUP => self.rearrange(opcode),
            op::BINGET | op::LONG_BINGET => self.recall(opcode),
            op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => self.memorise(opcode),
            op::NONE | op::BINFLOAT | op::SHORT_BINBYTES | op::BINBYTES | op::BINBYTES8 | op::BYTEARRAY8 => {
                self.opaque(opcode)
            }
            op::NEWTRUE | op::NEWFALSE | op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::LONG4 => {
                self.integer(opcode)
            }
            op::SHORT_BINUNICODE => self.text::<1>(),
            op::BINUNICODE => self.text::<4>(),
            op::BINUNICODE8 => self.text::<8>(),
            op::SHORT_BINSTRING => self.text::<1>(),
            op::BINSTRING => self.text::<4>(),
            op::EMPTY_TUPLE | op::TUPLE1 | op::TUPLE2 | op::TUPLE3 | op::TUPLE => self.tuple(opcode),
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
                self.push(Value::Global(Global::named(module, name)?))
            }
            op::STACK_GLOBAL => self.stack_global(),
            op::BINPERSID => self.storage(),
            op::REDUCE => self.call(),
            op::NEWOBJ => self.new_object(),
            op::BUILD => self.build(),
            // Refused in any case; the message names what it refers to.
            op::INST => {
                let (module, name) = (self.reader.line()?, self.reader.line()?);
                Global::named(module, name).and(Err(PickleError::Opcode(opcode)))
            }
            _ => Err(PickleError::Opcode(opcode)),
        }
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), PickleError> {
        let made = self.values.add(value)?;
        self.stack.push(made);
        Ok(())
    }

    /// Whether the stack is empty above the last mark.
    fn is_empty(&self) -> bool {
        self.stack.len() <= self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Ref, PickleError> {
        self.stack.last().copied().filter(|_| !self.is_empty()).ok_or(PickleError::Malformed("the stack is empty"))
    }

    fn pop(&mut self) -> Result<Ref, PickleError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Pops the last `N` values; returns them in the order in which they were pushed.
    fn pop_last<const N: usize>(&mut self) -> Result<[Ref; N], PickleError> {
        let mut last = [Values::OPAQUE; N];
        for place in last.iter_mut().rev() {
            *place = self.pop()?;
        }
        Ok(last)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Ref>, PickleError> {
        let mark = self.marks.pop().ok_or(PickleError::Malformed("there is no mark"))?;
        Ok(self.stack.drain(mark.min(self.stack.len())..).collect())
    }

    fn rearrange(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
                Ok(())
            }
            op::POP if !self.is_empty() => self.pop().map(drop),
            _ => self.pop_to_mark().map(drop),
        }
    }

    fn recall(&mut self, opcode: u8) -> Result<(), PickleError> {
        let number = self.memo_number(opcode == op::LONG_BINGET)?;
        let remembered = self.memo.get(&number).ok_or(PickleError::Malformed("it recalls what it never remembered"))?;
        self.stack.push(*remembered);
        Ok(())
    }

    fn memorise(&mut self, opcode: u8) -> Result<(), PickleError> {
        let number = match opcode {
            op::MEMOIZE => self.memo.len(),
            opcode => self.memo_number(opcode == op::LONG_BINPUT)?,
        };
        let top = self.top()?;
        self.memo.insert(number, top);
        if self.memo.len() > MAX_VALUES { Err(PickleError::TooMany("memories")) } else { Ok(()) }
    }

    fn memo_number(&mut self, long: bool) -> Result<usize, PickleError> {
        if !long {
            return self.reader.byte().map(usize::from);
        }
        usize::try_from(u32::from_le_bytes(self.reader.array()?)).map_err(|_| PickleError::Truncated)
    }

    fn opaque(&mut self, opcode: u8) -> Result<(), PickleError> {
        match opcode {
            op::BINFLOAT => self.reader.take(8)?,
            op::SHORT_BINBYTES => self.reader.counted::<1>()?,
            op::BINBYTES => self.reader.counted::<4>()?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.reader.counted::<8>()?,
            _ => &[],
        };
        self.stack.push(Values::OPAQUE);
        Ok(())
    }

    fn integer(&mut self, opcode: u8) -> Result<(), PickleError> {
        let integer = match opcode {
            op::NEWTRUE => Some(1),
            op::NEWFALSE => Some(0),
            op::BININT => Some(i64::from(i32::from_le_bytes(self.reader.array()?))),
            op::BININT1 => Some(i64::from(self.reader.byte()?)),
            op::BININT2 => Some(i64::from(u16::from_le_bytes(self.reader.array()?))),
            op::LONG1 => long(self.reader.counted::<1>()?),
            _ => long(self.reader.counted::<4>()?),
        };
        match integer {
            Some(integer) => self.push(Value::Integer(integer)),
            None => {
                self.stack.push(Values::OPAQUE);
                Ok(())
            }
        }
    }

    fn text<const N: usize>(&mut self) -> Result<(), PickleError> {
        let text = text(self.reader.counted::<N>()?)?;
        self.push(Value::Text(text))
    }

    fn tuple(&mut self, opcode: u8) -> Result<(), PickleError> {
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
            _ => Err(PickleError::Malformed("it appends to what is no list")),
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
            _ => Err(PickleError::Malformed("it sets items of what is no dictionary")),
        }
    }

    fn stack_global(&mut self) -> Result<(), PickleError> {
        let [module, name] = self.pop_last()?;
        match (self.values.get(module), self.values.get(name)) {
            (Value::Text(module), Value::Text(name)) => self.push(Value::Global(Global::named(module, name)?)),
            _ => Err(PickleError::Malformed("it asks for a name that is no text")),
        }
    }

    /// Handles the persistent id `("storage", type, key, device, elements)`.
    fn storage(&mut self) -> Result<(), PickleError> {
        let malformed = PickleError::Malformed("a storage is not described as PyTorch does it");
        let id = self.pop()?;
        let Value::Tuple(id) = self.values.get(id) else { return Err(malformed) };
        let &[kind, class, key, _, elements] = id.as_slice() else { return Err(malformed) };
        let described = [kind, class, key, elements].map(|part| self.values.get(part));
        let [Value::Text("storage"), Value::Global(Global::Storage(dtype)), Value::Text(key), elements] = described
        else {
            return Err(malformed);
        };
        let storage = Storage { dtype: *dtype, key, elements: size(elements)? };
        self.push(Value::Storage(storage))
    }

    fn call(&mut self) -> Result<(), PickleError> {
        let [function, arguments] = self.pop_last()?;
        let malformed = PickleError::Malformed("it calls what is no function, or with arguments that are none");
        let (Value::Global(global), Value::Tuple(arguments)) = (self.values.get(function), self.values.get(arguments))
        else {
            return Err(malformed);
        };
        let made = match (global, arguments.as_slice()) {
            (Global::First, &[first, ..]) => {
                self.stack.push(first);
                return Ok(());
            }
            (Global::OrderedDict, []) => Value::Dict(Vec::new()),
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                Value::Tensor(self.tensor([storage, offset, shape, strides], None)?)
            }
            (Global::RebuildTypedTensor, &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                Value::Tensor(self.tensor([storage, offset, shape, strides], Some(dtype))?)
            }
            (Global::Opaque, _) => Value::Opaque,
            (Global::Class, _) => Value::Object(None),
            _ => return Err(malformed),
        };
        self.push(made)
    }

    fn tensor(&self, [storage, offset, shape, strides]: [Ref; 4], dtype: Option<Ref>) -> Result<View<'a>, PickleError> {
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
            return Err(PickleError::Malformed("a tensor has not as many strides as dimensions"));
        }
        let storage_bytes = storage.elements.checked_mul(storage.dtype.map_or(1, Dtype::size));
        Ok(View { dtype, key: storage.key, storage_bytes, offset: size(self.values.get(offset))?, shape, strides })
    }

    fn sizes(&self, of: Ref) -> Result<Vec<usize>, PickleError> {
        let (Value::Tuple(sizes) | Value::List(sizes)) = self.values.get(of) else {
            return Err(PickleError::Malformed("a shape is no tuple"));
        };
        if sizes.len() > MAX_DIMENSIONS {
            return Err(PickleError::Malformed("a tensor has more than 8 dimensions"));
        }
        sizes.iter().map(|&one| size(self.values.get(one))).collect()
    }

    fn new_object(&mut self) -> Result<(), PickleError> {
        let [class, _] = self.pop_last()?;
        match self.values.get(class) {
            Value::Global(Global::Class) => self.push(Value::Object(None)),
            Value::Global(Global::OrderedDict) => self.push(Value::Dict(Vec::new())),
            _ => Err(PickleError::Malformed("it makes an instance of what is no class")),
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
            // A state dict has the version numbers of its modules as attributes.
            Some(Value::Dict(_)) => Ok(()),
            _ => Err(PickleError::Malformed("it gives attributes to what has none")),
        }
    }
}

fn pairs(items: &[Ref]) -> Result<Vec<(Ref, Ref)>, PickleError> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() {
        Ok(pairs.iter().map(|&[key, value]| (key, value)).collect())
    } else {
        Err(PickleError::Malformed("a key has no value"))
    }
}

fn size(value: &Value<'_>) -> Result<usize, PickleError> {
    match value {
        Value::Integer(integer) => usize::try_from(*integer).map_err(|_| PickleError::Malformed("a size is negative")),
        _ => Err(PickleError::Malformed("a size is no integer")),
    }
}

/// A little-endian integer in two's complement, of any length; none if it does not fit.
fn long(bytes: &[u8]) -> Option<i64> {
    let fill = if bytes.last().is_some_and(|&last| last & 0x80 != 0) { 0xff } else { 0 };
    let mut extended = [fill; 8];
    extended.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(i64::from_le_bytes(extended))
}
