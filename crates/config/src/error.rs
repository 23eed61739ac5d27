use std::path::{Path, PathBuf};

use serde_saphyr::Error as Yaml;

use crate::locations::Locations;
use crate::schema::Problem;

/// A problem of a run file, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read, or its path could not be made absolute.
    #[error("{}: {source}", path.display())]
    Read {
        /// The run file.
        path: PathBuf,
        /// The error of the operating system.
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
        /// The problem.
        problem: String,
    },
    /// A value is out of its range, is missing, or contradicts another, or the file is too long.
    #[error("{0}")]
    Value(Diagnostic),
}

/// A problem of a run file in JSON, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonError(pub(crate) String);

/// A maximal length of captions that exceeds the captioner's number of positions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {length}, the captioner has {positions} positions")]
pub struct LengthError {
    /// The key of the run file with the length.
    pub key: &'static str,
    /// The maximal length in tokens.
    pub length: u32,
    /// The number of positions of the captioner.
    pub positions: usize,
}

/// An error or a warning about the value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The run file.
    pub path: PathBuf,
    /// Line of the value, or of the key that should contain it, from 1.
    pub line: u64,
    /// Column, from 1.
    pub column: u64,
    /// Path of the key, e.g. `stages[2].batch`.
    pub key: String,
    /// The problem.
    pub problem: String,
}

impl std::fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, line, column, key, problem } = self;
        write!(f, "{}:{line}:{column}: {key}: {problem}", path.display())
    }
}

impl Diagnostic {
    pub(crate) fn new(path: &Path, locations: &Locations, (key, problem): Problem) -> Self {
        let (line, column) = locations.of(&key);
        Self { path: path.to_owned(), line, column, key, problem }
    }
}

impl Error {
    pub(crate) fn from_yaml(path: &Path, text: &str, error: &Yaml) -> Self {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let problem = match error {
            Yaml::SerdeUnknownField { field, expected, .. } => unknown("key", field, expected),
            Yaml::SerdeUnknownVariant { variant, expected, .. } => unknown("value", variant, expected),
            other => {
                // The message ends with the location, and further lines may show the text: only the
                // part before them is used.
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

/// The word at a line and column, both counted from 1.
fn word_at(text: &str, line: u64, column: u64) -> Option<String> {
    let line = text.lines().nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let rest = line.chars().skip(usize::try_from(column).ok()?.checked_sub(1)?);
    let word: String = rest.take_while(|c| !c.is_whitespace() && !",}]".contains(*c)).take(40).collect();
    (!word.is_empty()).then_some(word)
}

/// A message that names the valid word that is nearest to a wrong one, or all valid words. Case and
/// the kind of dash do not matter.
pub(crate) fn unknown(what: &str, found: &str, expected: &[&str]) -> String {
    let normalized = found.to_lowercase().replace(['-', ' '], "_");
    let similarity = |word: &str| strsim::jaro_winkler(word, &normalized);
    match expected.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b))) {
        Some(near) if similarity(near) > 0.7 => format!("unknown {what} `{found}`: did you mean `{near}`?"),
        _ => format!("unknown {what} `{found}`: expected one of `{}`", expected.join("`, `")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_case_or_dash_leads_to_the_valid_word() {
        let words = ["contrastive", "cross_entropy", "scst", "dico"];
        for (found, near) in
            [("DiCO", "dico"), ("SCST", "scst"), ("Cross-Entropy", "cross_entropy"), ("CROSS ENTROPY", "cross_entropy")]
        {
            let expected = format!("unknown value `{found}`: did you mean `{near}`?");
            assert_eq!(unknown("value", found, &words), expected);
        }
        assert!(unknown("value", "zzz", &words).contains("expected one of `contrastive`, `cross_entropy`"));
    }
}
