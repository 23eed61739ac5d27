use std::path::{Path, PathBuf};

use serde_saphyr::Error as Yaml;

/// What is wrong with a run file, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The run file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not YAML, or a key or type in it is wrong.
    #[error("{}:{line}:{column}: {problem}", path.display())]
    Syntax {
        /// The run file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong there.
        problem: String,
    },
    /// A value is out of its range or does not fit another.
    #[error("{}: {key}: {problem}", path.display())]
    Value {
        /// The run file.
        path: PathBuf,
        /// Path of the key, e.g. `stages[2].batch`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    pub(crate) fn from_yaml(path: &Path, text: &str, error: &Yaml) -> Self {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let problem = match error {
            Yaml::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
            Yaml::SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected),
            other => {
                // The message repeats the location and, for multi-line ones, a snippet: one line is enough here.
                let message = other.to_string();
                let first = message.lines().next().unwrap_or_default();
                let problem = first.split(" at line ").next().unwrap_or(first);
                match word_at(text, line, column) {
                    Some(word) => format!("{problem}: `{word}`"),
                    None => problem.to_owned(),
                }
            }
        };
        Self::Syntax { path: path.to_owned(), line, column, problem }
    }
}

/// The word that stands at a place, both counted from 1.
fn word_at(text: &str, line: u64, column: u64) -> Option<String> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let rest = line.chars().skip(usize::try_from(column).ok()?.checked_sub(1)?);
    let word: String = rest.take_while(|c| !c.is_whitespace() && !",}]".contains(*c)).take(40).collect();
    (!word.is_empty()).then_some(word)
}

/// Names the valid word that is nearest to a wrong one, or all of them.
pub(crate) fn unknown(what: &str, found: &str, expected: &[&str]) -> String {
    let nearest =
        expected.iter().max_by(|a, b| strsim::jaro_winkler(a, found).total_cmp(&strsim::jaro_winkler(b, found)));
    match nearest {
        Some(near) if strsim::jaro_winkler(near, found) > 0.7 => {
            format!("unknown {what} `{found}`: did you mean `{near}`?")
        }
        _ => format!("unknown {what} `{found}`: expected one of `{}`", expected.join("`, `")),
    }
}
