use std::path::PathBuf;

/// An error in reading caption files or computing metrics. Its message is one line with the file
/// and, if there is one, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The content of a file is invalid, too large, or does not match the other file; a file that
    /// SPICE needs is missing; or standard input cannot be read a second time.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The problem, and its position in the file if known.
        problem: String,
    },
    /// The Java program that computes SPICE failed.
    #[error("SPICE: {0}")]
    Spice(String),
}

impl Error {
    pub(crate) fn file(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::File { path: path.into(), source }
    }

    pub(crate) fn invalid(path: impl Into<PathBuf>, problem: impl ToString) -> Self {
        Self::Invalid { path: path.into(), problem: problem.to_string() }
    }
}
