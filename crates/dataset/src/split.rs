//! The splits of a data set.

use std::fmt::{Display, Formatter};
use std::str::FromStr;

use crate::UnknownSplitError;

/// A split of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation, never for training.
    Validation,
    /// Not used by a run; may be empty.
    Test,
}

impl Split {
    /// All splits.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The name used on command lines and in annotations.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }
}

impl Display for Split {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Parses every name that [`metric_catalogue::names::canonical_split`] accepts.
impl FromStr for Split {
    type Err = UnknownSplitError;

    fn from_str(name: &str) -> Result<Self, UnknownSplitError> {
        let split =
            Self::ALL.into_iter().find(|split| metric_catalogue::names::canonical_split(name) == Some(split.name()));
        split.ok_or_else(|| UnknownSplitError(name.to_owned()))
    }
}
