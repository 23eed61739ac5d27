use std::fmt::Display;

/// What is wrong with the data, in one line that names the file or URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{place}: {source}")]
    Read {
        /// The file.
        place: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A tar could not be read from its folder or bucket.
    #[error("{place}: {problem}")]
    Store {
        /// Path or URL.
        place: String,
        /// What the store said.
        problem: String,
    },
    /// Annotations, patterns, tars or indices are not in their format.
    #[error("{place}: {problem}")]
    Format {
        /// Path, URL or pattern.
        place: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// An image of the annotations is missing or is none.
    #[error("{place}: {problem} (named by the annotations; set data.skip_corrupt to leave such images out)")]
    Corrupt {
        /// The image file, or the tar and the key in it.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An image whose header was sound turned out to be damaged.
    #[error("{place}: {problem} (replace the image, or take it out of the data)")]
    Image {
        /// The image file, or the tar and the key in it.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl Error {
    pub(crate) fn format(place: impl Display, problem: impl Display) -> Self {
        Self::Format { place: place.to_string(), problem: problem.to_string() }
    }

    pub(crate) fn corrupt(place: impl Display, problem: impl Display) -> Self {
        Self::Corrupt { place: place.to_string(), problem: problem.to_string() }
    }

    pub(crate) fn image(place: impl Display, problem: impl Display) -> Self {
        Self::Image { place: place.to_string(), problem: problem.to_string() }
    }
}

/// A name that is no split's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown split `{0}`: expected one of `train`, `val`, `test`")]
pub struct UnknownSplit(pub(crate) String);
