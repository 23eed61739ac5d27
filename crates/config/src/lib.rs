//! The run file: one YAML document with the data, models, stages and number of workers of a run.
//!
//! The coordinator reads and checks it; workers receive it as JSON at join, so they cannot disagree
//! about a setting. Every key is known: a wrong one is refused with file, line, column and the
//! nearest valid key, or all valid ones.
//!
//! | module      | content                                                                                  |
//! |-------------|------------------------------------------------------------------------------------------|
//! | `schema`    | the types, and what is refused ([`RunFile::load`]) or warned about                       |
//! | `paths`     | makes relative paths absolute                                                            |
//! | `locations` | lines and columns of keys, for messages                                                  |
//! | `error`     | errors and warnings                                                                      |
//! | `keys`      | one table of all keys: units, and which may change while a run is under way              |
//! | `changes`   | what differs between two run files ([`changes()`]), and how a new run continues an old one |
//! | `limits`    | maximal numbers and sizes of images and texts                                            |
//! | `renamed`   | keys that had other names in earlier versions                                            |
//! | `reference` | the JSON Schema for editors and `docs/run-file.md`, both generated from the above        |

mod changes;
mod error;
mod keys;
pub mod limits;
mod locations;
mod paths;
mod reference;
mod renamed;
mod schema;
#[cfg(feature = "testing")]
pub mod testing;

pub use changes::{Change, changes, continuation};
pub use error::{Diagnostic, Error, JsonError, LengthError};
pub use keys::{KEYS, Key, Mutability};
pub use reference::{reference, schema_json};
pub use schema::*;

use std::path::{Path, PathBuf};

use locations::Locations;

/// Maximal size of a run file in bytes, as JSON with all defaults. A stage without a guard takes
/// less than a thousand bytes.
const MAX_BYTES: usize = 1 << 20;
/// Maximal size in bytes of JSON that [`RunFile::from_json`] accepts. It is larger than
/// [`MAX_BYTES`], because the coordinator makes paths absolute after it has checked the size.
const MAX_JSON_BYTES: usize = 2 * MAX_BYTES;

impl RunFile {
    /// Reads, parses and checks the run file at `path`. Relative paths inside it are relative to
    /// its folder and are made absolute, because workers may run elsewhere.
    ///
    /// # Errors
    /// The file cannot be read or is refused. The message names the file, and the line and column
    /// of what is refused.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_with_warnings(path).map(|(run, _)| run)
    }

    /// As [`load`](Self::load), with warnings about settings that have no effect or an unlikely
    /// effect, and about keys with names of earlier versions.
    ///
    /// # Errors
    /// The file cannot be read or is refused. The message names the file, and the line and column
    /// of what is refused.
    pub fn load_with_warnings(path: &Path) -> Result<(Self, Vec<Diagnostic>), Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let (mut run, warnings) = Self::parse_with_warnings(path, &text)?;
        paths::resolve(&mut run, path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Ok((run, warnings))
    }

    /// Parses and checks `text`, with or without a byte-order mark; `path` is only for messages.
    ///
    /// # Errors
    /// The text is refused. The message names `path`, line and column.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Error> {
        Self::parse_with_warnings(path, text).map(|(run, _)| run)
    }

    /// Parses and checks the JSON of a run file, as a coordinator sends it to workers. Paths are
    /// not resolved.
    ///
    /// # Errors
    /// The message is one line. It names the key of an invalid value.
    pub fn from_json(text: &str) -> Result<Self, JsonError> {
        if text.len() > MAX_JSON_BYTES {
            return Err(JsonError(format!("it has {} bytes, {MAX_JSON_BYTES} at most", text.len())));
        }
        let mut run: Self = serde_json::from_str(text).map_err(|error| JsonError(error.to_string()))?;
        run.check().map_err(|(key, problem)| JsonError(format!("{key}: {problem}")))?;
        run.complete_scores();
        Ok(run)
    }

    /// The folder of the journal, unless `serve --state` names another one.
    #[must_use]
    pub fn journal_folder(&self) -> PathBuf {
        self.output.join("coordinator")
    }

    /// The folder for the captions of evaluations.
    #[must_use]
    pub fn captions_folder(&self) -> PathBuf {
        self.output.join("captions")
    }

    /// The folder or URL that checkpoints are saved to.
    #[must_use]
    pub fn checkpoint_location(&self) -> String {
        let default = || self.output.join("checkpoints").to_string_lossy().into_owned();
        self.checkpoints.url.clone().unwrap_or_else(default)
    }

    fn parse_with_warnings(path: &Path, text: &str) -> Result<(Self, Vec<Diagnostic>), Error> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut run: Self = serde_saphyr::from_str(text).map_err(|error| Error::from_yaml(path, text, &error))?;
        let mut locations = Locations::read(text);
        let mut earlier = locations.rename_keys();
        earlier.extend(locations.move_objective_settings(&run.stages));
        let diagnostic = |problem| Diagnostic::new(path, &locations, problem);
        run.check().map_err(|problem| Error::Value(diagnostic(problem)))?;
        run.complete_scores();
        let bytes = serde_json::to_string(&run).map_or(0, |json| json.len());
        if bytes > MAX_BYTES {
            let problem = format!("make the run file {bytes} bytes long as JSON, {MAX_BYTES} at most");
            return Err(Error::Value(diagnostic(("stages".to_owned(), problem))));
        }
        let warnings = earlier.into_iter().chain(run.warnings()).map(diagnostic).collect();
        Ok((run, warnings))
    }
}
