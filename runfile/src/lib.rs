//! The run file: one YAML document that says what to train, on what, in which stages and with how many workers.
//!
//! The coordinator reads and checks it; workers receive it as JSON at join, so they cannot disagree about a setting.
//! Every key is known: a wrong one is refused with file, line, column and the nearest valid key.

mod error;
mod paths;
mod schema;

pub use error::Error;
pub use schema::*;

use std::path::Path;

impl RunFile {
    /// Reads, parses and checks the run file at `path`. Relative paths inside it are relative to
    /// its folder and are made absolute, because workers may run elsewhere.
    ///
    /// # Errors
    /// Names the file, and the line and column where they are known.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut run = Self::parse(path, &text)?;
        run.resolve_paths(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok(run)
    }

    /// Parses and checks `text`, with or without a byte-order mark; `path` is only for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let run: Self = serde_saphyr::from_str(text).map_err(|error| Error::from_yaml(path, text, &error))?;
        run.check().map_err(|(key, problem)| Error::Value { path: path.to_owned(), key, problem })?;
        Ok(run)
    }
}
