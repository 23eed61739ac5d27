use std::io::ErrorKind;

use object_storage::describe_error;

/// An error of checkpoints or their location, in one line that names the folder or URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location is invalid.
    #[error(transparent)]
    Location(#[from] object_storage::LocationError),
    /// The name is not valid for a checkpoint or a file, is that of the seal, or the checkpoint
    /// already has a file of this name.
    #[error(
        "{name:?} cannot be the name of a checkpoint or of a new file in one: use 1 to 255 letters, digits, `-`, `_` or `.`"
    )]
    Name {
        /// The beginning of the name.
        name: String,
    },
    /// The disk or the quota is full.
    #[error("{location}: no space is left ({problem}): delete files there")]
    StorageFull {
        /// The path or URL.
        location: String,
        /// The error of the operating system.
        problem: String,
    },
    /// The location cannot be read or written, or the settings for buckets are invalid.
    #[error("{location}: {problem}")]
    Store {
        /// The path or URL.
        location: String,
        /// The error of the store or of the operating system.
        problem: String,
    },
    /// There is no checkpoint of this name, or it is incomplete.
    #[error("{location} is not a checkpoint: it has no seal (checkpoint.json)")]
    Missing {
        /// The path or URL of the checkpoint.
        location: String,
    },
    /// A model folder has no seal.
    #[error("{location} has no seal (checkpoint.json): fetch it again with all its files, or import it again")]
    Unsealed {
        /// The path of the folder.
        location: String,
    },
    /// A checkpoint or model folder does not match its seal, or the seal or the metadata are
    /// damaged.
    #[error("{location} is damaged: {problem}")]
    Damaged {
        /// The path or URL of the checkpoint, or of its metadata.
        location: String,
        /// The problem, with the name of the file unless `location` has it.
        problem: String,
    },
    /// The seal or the metadata of a checkpoint or model folder have another format version. They
    /// are intact; other files are not verified.
    #[error("{location} has format {found}, this program reads {known}: use the version that wrote it")]
    Version {
        /// The path or URL of the checkpoint, or of its metadata.
        location: String,
        /// The version of the format of the seal or metadata.
        found: u64,
        /// The version that this program reads.
        known: u64,
    },
}

impl Error {
    /// Wraps a store's error about `location`.
    pub(crate) fn store(location: impl Into<String>, error: &object_store::Error) -> Self {
        Self::storage(location, error, describe_error(error))
    }

    /// Wraps an operating system's error about `location`.
    pub(crate) fn system(location: impl Into<String>, error: &std::io::Error) -> Self {
        Self::storage(location, error, error.to_string())
    }

    fn storage(location: impl Into<String>, error: &(dyn std::error::Error + 'static), problem: String) -> Self {
        let location = location.into();
        match storage_full(error) {
            Some(problem) => Self::StorageFull { location, problem },
            None => Self::Store { location, problem },
        }
    }

    /// Whether the checkpoint itself is missing or damaged, so that an earlier checkpoint has to be
    /// used.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Unsealed { .. } | Self::Damaged { .. })
    }
}

/// The message of the first cause that is a full disk or quota; none if there is no such cause.
fn storage_full(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.find_map(|cause| {
        let cause = cause.downcast_ref::<std::io::Error>()?;
        matches!(cause.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded).then(|| cause.to_string())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_or_quota_has_its_own_error() {
        // ENOSPC, EDQUOT, EACCES.
        for (code, is_full) in [(28, true), (122, true), (13, false)] {
            let source = Box::new(std::io::Error::from_raw_os_error(code));
            let error = Error::store("here", &object_store::Error::Generic { store: "disk", source });
            assert_eq!(matches!(error, Error::StorageFull { .. }), is_full, "{error}");
            let text = error.to_string();
            assert!(text.starts_with("here: ") && text.contains(&format!("os error {code}")), "{text}");
        }
    }
}
