//! Finds the tensors in the values of a pickle.

use std::collections::BTreeMap;

use super::value::{TensorView, Value, ValueIndex, Values};
use super::{MAX_TENSORS_AND_MODULES, MAX_VALUES, PickleError};

/// Maximal length of a tensor's name, in bytes.
const MAX_NAME_BYTES: usize = 512;
/// Maximal number of nested dictionaries that are searched, the outermost included:
/// `{"model": {"state_dict": {..}}}` has three.
const MAX_STATE_DICT_DEPTH: usize = 3;

type Tensors<'a> = BTreeMap<String, TensorView<'a>>;

/// The tensors below `root`, by name.
pub fn named_tensors<'a>(values: &Values<'a>, root: ValueIndex) -> Result<Tensors<'a>, PickleError> {
    let tensors = match values.get(root) {
        Value::Object(_) => module_tensors(values, root)?,
        _ => state_dict_tensors(values, root)?,
    };
    if tensors.is_empty() { Err(PickleError::NoTensors) } else { Ok(tensors) }
}

fn state_dict_tensors<'a>(values: &Values<'a>, root: ValueIndex) -> Result<Tensors<'a>, PickleError> {
    let mut tensors = Tensors::new();
    let mut dict = root;
    for _ in 0..MAX_STATE_DICT_DEPTH {
        let Value::Dict(items) = values.get(dict) else { break };
        for &(key, value) in items {
            if let (Value::Text(name), Value::Tensor(tensor)) = (values.get(key), values.get(value)) {
                add(&mut tensors, "", name, tensor)?;
            }
        }
        if !tensors.is_empty() {
            break;
        }
        let item = |name: &str| items.iter().rev().find(|(key, _)| is_text(values.get(*key), name));
        match item("state_dict").or_else(|| item("model")) {
            Some(&(_, inner)) => dict = inner,
            None => break,
        }
    }
    Ok(tensors)
}

fn is_text(value: &Value<'_>, expected: &str) -> bool {
    matches!(value, Value::Text(text) if *text == expected)
}

/// The tensors of a module and of its submodules. A module that several modules contain is visited
/// several times, and a cycle might never end, so the numbers of modules, tensors and attributes
/// are limited.
fn module_tensors<'a>(values: &Values<'a>, root: ValueIndex) -> Result<Tensors<'a>, PickleError> {
    let mut tensors = Tensors::new();
    let mut modules = vec![(String::new(), root)];
    let (mut name_count, mut visited) = (0, 0);
    while let Some((path, module)) = modules.pop() {
        let Value::Object(Some(attributes)) = values.get(module) else { continue };
        let Value::Dict(items) = values.get(*attributes) else { continue };
        for &(key, value) in items {
            visited += 1;
            if visited > MAX_VALUES {
                return Err(PickleError::TooMany("attributes of modules"));
            }
            let Value::Text(name) = values.get(key) else { continue };
            match values.get(value) {
                Value::Tensor(tensor) => add(&mut tensors, &path, name, tensor)?,
                Value::Object(_) => modules.push((join_name(&path, name)?, value)),
                _ => continue,
            }
            name_count += 1;
            if name_count > MAX_TENSORS_AND_MODULES {
                return Err(PickleError::TooMany("modules and tensors"));
            }
        }
    }
    Ok(tensors)
}

fn add<'a>(tensors: &mut Tensors<'a>, path: &str, name: &str, tensor: &TensorView<'a>) -> Result<(), PickleError> {
    tensors.insert(join_name(path, name)?, tensor.clone());
    if tensors.len() > MAX_TENSORS_AND_MODULES { Err(PickleError::TooMany("tensors")) } else { Ok(()) }
}

fn join_name(path: &str, name: &str) -> Result<String, PickleError> {
    let joined = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if joined.len() > MAX_NAME_BYTES {
        Err(PickleError::Malformed("the name of a tensor or module is too long"))
    } else {
        Ok(joined)
    }
}
