use std::fmt::Display;
use std::path::{Path, PathBuf};

/// An error in weights or their configuration files, in one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The path of the file or folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file or folder cannot be used: it is damaged, too large or of an unsupported format, or it
    /// does not fit the settings or another file.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The path of the file or folder.
        path: PathBuf,
        /// The problem and, if there is one, the remedy.
        problem: String,
    },
    /// One tensor is missing, malformed, not supported or a duplicate, or does not fit the others.
    #[error("{}: {tensor}: {problem}", path.display())]
    Tensor {
        /// The path of the file or folder.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// The problem with it.
        problem: String,
    },
    /// The tensors do not match the config of the model.
    #[error("{}: {problem}", path.display())]
    TensorMismatch {
        /// The path of the file or folder.
        path: PathBuf,
        /// The tensors that are missing, unknown, or of a wrong shape; a long list is cut off.
        problem: String,
    },
    /// A setting of a configuration file is malformed or not supported.
    #[error("{}: {key}: {problem}", path.display())]
    Setting {
        /// The configuration file.
        path: PathBuf,
        /// The path of the setting, e.g. `decoder.n_layer`.
        key: String,
        /// The problem with it.
        problem: String,
    },
    /// A tensor in memory is not part of the upstream layout (see [`captioner`](crate::captioner)),
    /// or cannot be written.
    #[error("{tensor}: {problem}")]
    Export {
        /// The name of the tensor; `header` if the header of the file cannot be written.
        tensor: String,
        /// The problem with it.
        problem: String,
    },
}

impl Error {
    pub(crate) fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }

    pub(crate) fn invalid(path: &Path, problem: impl Display) -> Self {
        Self::Invalid { path: path.to_owned(), problem: printable(&problem.to_string()) }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, problem: impl Display) -> Self {
        Self::Tensor { path: path.to_owned(), tensor: printable(tensor), problem: printable(&problem.to_string()) }
    }

    pub(crate) fn setting(path: &Path, key: &str, problem: impl Display) -> Self {
        Self::Setting { path: path.to_owned(), key: printable(key), problem: printable(&problem.to_string()) }
    }

    pub(crate) fn export(tensor: &str, problem: impl Display) -> Self {
        Self::Export { tensor: printable(tensor), problem: printable(&problem.to_string()) }
    }
}

/// Text from a file in a form that is safe for a log line: without control characters, and of
/// limited length.
pub(crate) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 400;
    let mut line: String = text.chars().take(MAX_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_of_a_file_do_not_reach_the_log() {
        let error = Error::invalid(Path::new("a.pt"), format!("has a\n\u{1b}[2Jb{}", "x".repeat(10_000)));
        let line = error.to_string();
        assert!(line.starts_with("a.pt: has a\u{fffd}\u{fffd}[2Jb") && line.len() < 500, "{line}");
    }
}
