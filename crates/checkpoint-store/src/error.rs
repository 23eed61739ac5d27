use std::io::ErrorKind;

use object_io::describe;

/// An error of checkpoints or their location, in one line that names the folder or URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location is invalid.
    #[error(transparent)]
    Location(#[from] object_io::LocationError),
    /// A name that no checkpoint and no file of one may have.
    #[error(
        "{name:?} is no name for a checkpoint or a new file of one: it takes 1 to 255 letters, digits, `-`, `_` or `.`"
    )]
    Name {
        /// The beginning of the name.
        name: String,
    },
    /// The disk or the quota is full.
    #[error("{place}: no room is left ({problem}): make room there")]
    NoRoom {
        /// The path or URL.
        place: String,
        /// The error of the operating system.
        problem: String,
    },
    /// The location cannot be used, temporarily or at all.
    #[error("{place}: {problem}")]
    Store {
        /// The path or URL.
        place: String,
        /// The error of the store.
        problem: String,
    },
    /// There is no checkpoint of this name, or it is incomplete.
    #[error("{place} is no checkpoint: it has no seal (checkpoint.json)")]
    Missing {
        /// Path or URL of the checkpoint.
        place: String,
    },
    /// A model folder has no seal.
    #[error("{place} has no seal (checkpoint.json): fetch it again with all its files, or import it again")]
    Unsealed {
        /// Path of the folder.
        place: String,
    },
    /// The checkpoint does not match its seal.
    #[error("{place} is damaged: {problem}")]
    Damaged {
        /// Path or URL of the checkpoint.
        place: String,
        /// The file and its problem.
        problem: String,
    },
    /// The checkpoint is intact, but of another format version.
    #[error("{place} has format {found}, this program reads {known}: use the version that wrote it")]
    Version {
        /// Path or URL of the checkpoint.
        place: String,
        /// The version of its format.
        found: u64,
        /// The version that this program reads.
        known: u64,
    },
}

impl Error {
    /// The error for a store's error about `place`.
    pub(crate) fn store(place: impl Into<String>, error: &object_store::Error) -> Self {
        Self::of(place, error, describe(error))
    }

    /// The error for an operating system's error about `place`.
    pub(crate) fn system(place: impl Into<String>, error: &std::io::Error) -> Self {
        Self::of(place, error, error.to_string())
    }

    fn of(place: impl Into<String>, error: &(dyn std::error::Error + 'static), problem: String) -> Self {
        let place = place.into();
        match full(error) {
            Some(problem) => Self::NoRoom { place, problem },
            None => Self::Store { place, problem },
        }
    }

    /// Whether the checkpoint itself is unusable, so that an earlier one has to be used.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Missing { .. } | Self::Unsealed { .. } | Self::Damaged { .. })
    }
}

/// The message of the innermost cause, if that is a full disk or quota.
fn full(error: &(dyn std::error::Error + 'static)) -> Option<String> {
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
    fn a_full_disk_and_a_full_quota_are_told_from_other_failures() {
        // ENOSPC, EDQUOT, EACCES.
        for (code, full) in [(28, true), (122, true), (13, false)] {
            let source = Box::new(std::io::Error::from_raw_os_error(code));
            let error = Error::store("here", &object_store::Error::Generic { store: "disk", source });
            assert_eq!(matches!(error, Error::NoRoom { .. }), full, "{error}");
            let text = error.to_string();
            assert!(text.starts_with("here: ") && text.contains(&format!("os error {code}")), "{text}");
        }
    }
}
