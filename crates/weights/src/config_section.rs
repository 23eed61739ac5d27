//! Typed access to the settings of a `config.json`.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::Error;

/// Maximal value of a size in a config, such as a width or a number of layers. The callers also
/// check sizes against the weights.
const MAX_SIZE: usize = 1 << 24;

/// A JSON object in a configuration file.
pub(crate) struct ConfigSection<'a> {
    path: &'a Path,
    /// The keys of the path to the section, each followed by a dot.
    prefix: String,
    settings: &'a Map<String, Value>,
}

impl<'a> ConfigSection<'a> {
    pub fn root(path: &'a Path, config: &'a Value) -> Result<Self, Error> {
        let settings = config.as_object().ok_or_else(|| Error::invalid(path, "is not a JSON object"))?;
        Ok(Self { path, prefix: String::new(), settings })
    }

    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.settings.get(key)
    }

    pub fn section(&self, key: &str) -> Result<Self, Error> {
        let settings = self.settings.get(key).and_then(Value::as_object);
        let settings = settings.ok_or_else(|| self.error(key, "is missing, or not an object"))?;
        Ok(ConfigSection { path: self.path, prefix: format!("{}{key}.", self.prefix), settings })
    }

    pub fn error(&self, key: &str, problem: impl std::fmt::Display) -> Error {
        Error::setting(self.path, &format!("{}{key}", self.prefix), problem)
    }

    /// Refuses a setting with an unsupported value. The setting may be missing.
    pub fn require_one_of(&self, key: &str, supported: &[Value]) -> Result<(), Error> {
        match self.settings.get(key) {
            Some(value) if !supported.contains(value) => {
                let supported: Vec<String> = supported.iter().map(Value::to_string).collect();
                Err(self.error(key, format!("is {value}; only {} is supported", supported.join(" or "))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses settings whose names are not in `supported`, because they could change the
    /// computation. Settings that are null count as missing.
    pub fn allow_only(&self, supported: &[&str]) -> Result<(), Error> {
        match self.settings.iter().find(|(key, value)| !supported.contains(&key.as_str()) && !value.is_null()) {
            Some((key, _)) => Err(self.error(key, "is not supported")),
            None => Ok(()),
        }
    }

    /// One number each for red, green and blue; `default` if the setting is missing.
    pub fn channels(&self, key: &str, default: [f32; 3]) -> Result<[f32; 3], Error> {
        match self.settings.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => serde::Deserialize::deserialize(value).map_err(|_| self.error(key, "must be three numbers")),
        }
    }

    /// An integer from 1 to [`MAX_SIZE`]; `default` if the setting is missing.
    pub fn size(&self, key: &str, default: usize) -> Result<usize, Error> {
        let value = match self.settings.get(key) {
            None | Some(Value::Null) => return Ok(default),
            Some(value) => value,
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.filter(|size| (1..=MAX_SIZE).contains(size))
            .ok_or_else(|| self.error(key, format!("is {value}; it has to be from 1 to {MAX_SIZE}")))
    }

    /// The number of attention heads of a model of this width, which it has to divide; `default` if
    /// the setting is missing.
    pub fn heads(&self, key: &str, default: usize, width: usize) -> Result<usize, Error> {
        let heads = self.size(key, default)?;
        if width.is_multiple_of(heads) {
            Ok(heads)
        } else {
            Err(self.error(key, format!("is {heads}, which does not divide {width}")))
        }
    }

    /// Refuses the setting `key` if its `value` differs from `expected`. The message says "is 3,
    /// but NAME is 2" with `expected_name` for NAME, such as `decoder.n_head`.
    pub fn require_equal(&self, key: &str, value: usize, expected_name: &str, expected: usize) -> Result<(), Error> {
        if value == expected {
            Ok(())
        } else {
            Err(self.error(key, format!("is {value}, but {expected_name} is {expected}")))
        }
    }
}
