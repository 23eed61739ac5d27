//! Finds the tensors in the values of a pickle.

use std::collections::BTreeMap;

use super::value::{Ref, Value, Values, View};
use super::{MAX_NAMES, MAX_VALUES, PickleError};

/// Maximal length of a tensor's name, in bytes.
const MAX_NAME_LENGTH: usize = 512;
/// Maximal depth of a state dict below the top, e.g. `{"model": {"state_dict": ..}}`.
const DEEPEST_STATE_DICT: usize = 3;

type Tensors<'a> = BTreeMap<String, View<'a>>;

/// The tensors below `root`, by name.
pub fn named_tensors<'a>(values: &Values<'a>, root: Ref) -> Result<Tensors<'a>, PickleError> {
    let found = match values.get(root) {
        Value::Object(_) => in_module(values, root)?,
        _ => in_state_dict(values, root)?,
    };
    if found.is_empty() { Err(PickleError::NoTensors) } else { Ok(found) }
}

fn in_state_dict<'a>(values: &Values<'a>, root: Ref) -> Result<Tensors<'a>, PickleError> {
    let mut found = Tensors::new();
    let mut at = root;
    for _ in 0..DEEPEST_STATE_DICT {
        let Value::Dict(items) = values.get(at) else { break };
        for &(key, value) in items {
            if let (Value::Text(name), Value::Tensor(tensor)) = (values.get(key), values.get(value)) {
                add(&mut found, "", name, tensor)?;
            }
        }
        if !found.is_empty() {
            break;
        }
        let named = |wanted: &str| items.iter().rev().find(|(key, _)| is_text(values.get(*key), wanted));
        match named("state_dict").or_else(|| named("model")) {
            Some(&(_, inner)) => at = inner,
            None => break,
        }
    }
    Ok(found)
}

fn is_text(value: &Value<'_>, wanted: &str) -> bool {
    matches!(value, Value::Text(text) if *text == wanted)
}

/// The tensors of a module and of its submodules. A module that is reachable on several paths is
/// visited several times, and a cycle would be endless, so the visits are limited.
fn in_module<'a>(values: &Values<'a>, root: Ref) -> Result<Tensors<'a>, PickleError> {
    let mut found = Tensors::new();
    let mut modules = vec![(String::new(), root)];
    let (mut named, mut seen) = (0, 0);
    let too_many = PickleError::TooMany("modules and tensors");
    while let Some((path, module)) = modules.pop() {
        let Value::Object(Some(attributes)) = values.get(module) else { continue };
        let Value::Dict(items) = values.get(*attributes) else { continue };
        for &(key, value) in items {
            seen += 1;
            if seen > MAX_VALUES {
                return Err(too_many);
            }
            let Value::Text(name) = values.get(key) else { continue };
            match values.get(value) {
                Value::Tensor(tensor) => add(&mut found, &path, name, tensor)?,
                Value::Object(_) => modules.push((dotted(&path, name)?, value)),
                _ => continue,
            }
            named += 1;
            if named > MAX_NAMES {
                return Err(too_many);
            }
        }
    }
    Ok(found)
}

fn add<'a>(found: &mut Tensors<'a>, path: &str, name: &str, tensor: &View<'a>) -> Result<(), PickleError> {
    found.insert(dotted(path, name)?, tensor.clone());
    if found.len() > MAX_NAMES { Err(PickleError::TooMany("tensors")) } else { Ok(()) }
}

fn dotted(path: &str, name: &str) -> Result<String, PickleError> {
    let whole = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    if whole.len() > MAX_NAME_LENGTH {
        Err(PickleError::Malformed("the name of a tensor is too long"))
    } else {
        Ok(whole)
    }
}
