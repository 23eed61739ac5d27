//! Settings of a `config.json` in transformers' format.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Error;

/// Maximal size in a config; sizes are checked against the weights, too.
const MAX_VALUE: usize = 1 << 24;

/// An object of the file.
pub(crate) struct Section<'a> {
    path: &'a Path,
    /// The keys that lead to it, each followed by a dot.
    prefix: String,
    settings: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    pub fn top(path: &'a Path, config: &'a Value) -> Result<Self, Error> {
        let settings = config.as_object().ok_or_else(|| Error::format(path, "is no JSON object"))?;
        Ok(Self { path, prefix: String::new(), settings })
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.settings.get(key)
    }

    pub fn section(&self, key: &str) -> Result<Self, Error> {
        let settings = self.settings.get(key).and_then(Value::as_object);
        let settings = settings.ok_or_else(|| self.wrong(key, "is missing, or no object"))?;
        Ok(Section { path: self.path, prefix: format!("{}{key}.", self.prefix), settings })
    }

    pub fn wrong(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::setting(self.path, &format!("{}{key}", self.prefix), problem)
    }

    /// Refuses a setting with an unsupported value; a missing one is fine.
    pub fn require(&self, key: &str, supported: &[Value]) -> Result<(), Error> {
        match self.settings.get(key) {
            Some(found) if !supported.contains(found) => {
                let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
                Err(self.wrong(key, format!("is {found}; only {} is supported", supported.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses settings with other names: they could change the computation.
    pub fn only(&self, known: &[&str]) -> Result<(), Error> {
        match self.settings.iter().find(|(key, value)| !known.contains(&key.as_str()) && !value.is_null()) {
            Some((key, _)) => Err(self.wrong(key, "is not supported")),
            None => Ok(()),
        }
    }

    /// Numbers for red, green and blue.
    pub fn channels(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3], Error> {
        match self.settings.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(found) => serde::Deserialize::deserialize(found).map_err(|_| self.wrong(key, "must be three numbers")),
        }
    }

    pub fn size(&self, key: &str, default: usize) -> Result<usize, Error> {
        let found = match self.settings.get(key) {
            None | Some(Value::Null) => return Ok(default),
            Some(found) => found,
        };
        let size = found.as_u64().and_then(|size| usize::try_from(size).ok());
        size.filter(|size| (1..=MAX_VALUE).contains(size))
            .ok_or_else(|| self.wrong(key, format!("is {found}; it has to be from 1 to {MAX_VALUE}")))
    }

    /// The number of attention heads of a model of this width.
    pub fn heads(&self, key: &str, default: usize, width: usize) -> Result<usize, Error> {
        let heads = self.size(key, default)?;
        if width.is_multiple_of(heads) {
            Ok(heads)
        } else {
            Err(self.wrong(key, format!("is {heads}, which does not divide {width}")))
        }
    }

    pub fn agree(&self, key: &str, value: usize, other: &str, expected: usize) -> Result<(), Error> {
        if value == expected { Ok(()) } else { Err(self.wrong(key, format!("is {value}, but {other} is {expected}"))) }
    }
}
