//! Reads the scenes of a data set.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Error;
use crate::scene::Scene;

/// The scenes of a synthetic data set, by image file name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenes {
    by_file: BTreeMap<String, Scene>,
}

impl Scenes {
    /// Reads the `scenes.json` at `path`.
    ///
    /// # Errors
    /// The file cannot be read or is invalid; the message has the path and, for invalid JSON, line
    /// and column.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(Error::file(path))?;
        Ok(Self { by_file: serde_json::from_slice(&bytes).map_err(Error::json(path))? })
    }

    /// The scene that the image of this file name shows, e.g. `000001.jpg`.
    #[must_use]
    pub fn get(&self, file: &str) -> Option<&Scene> {
        self.by_file.get(file)
    }

    /// The number of scenes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_file.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_file.is_empty()
    }
}
