use std::fmt::Display;

/// An error in the data, in one line that names the file or URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{place}: {source}")]
    Read {
        /// The file.
        place: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A tar could not be read from its folder or bucket.
    #[error("{place}: {problem}")]
    Store {
        /// Path or URL.
        place: String,
        /// The error of the store.
        problem: String,
    },
    /// Annotations, patterns, tars or indices have a wrong format.
    #[error("{place}: {problem}")]
    Format {
        /// Path, URL or pattern.
        place: String,
        /// The problem, and its position.
        problem: String,
    },
    /// Images of the annotations are missing or invalid, and may not be skipped; names the first
    /// one.
    #[error("{place}: {problem}{} ({REMEDY})", others(*more))]
    Unusable {
        /// The image file, or the tar and the key in it.
        place: String,
        /// The problem with it.
        problem: String,
        /// The number of further such images.
        more: usize,
    },
    /// An image cannot be decoded.
    #[error("{place}: {problem}")]
    Image {
        /// The image file, or the tar and the key in it.
        place: String,
        /// The problem with it.
        problem: String,
    },
}

/// The remedy for an image that cannot be used.
const REMEDY: &str = "replace the image, or set data.skip_corrupt to leave such images out";

fn others(more: usize) -> String {
    match more {
        0 => String::new(),
        _ => format!(", and {more} more images: `coordinator validate` lists them"),
    }
}

impl Error {
    pub(crate) fn format(place: impl Display, problem: impl Display) -> Self {
        Self::Format { place: place.to_string(), problem: problem.to_string() }
    }

    pub(crate) fn image(place: impl Display, problem: impl Display) -> Self {
        Self::Image { place: place.to_string(), problem: problem.to_string() }
    }

    /// Whether the error concerns a single image, so that the others can be used. An unreachable
    /// bucket, for instance, does not.
    #[must_use]
    pub fn is_of_image(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Image { .. } | Self::Unusable { .. } => true,
            Self::Store { .. } | Self::Format { .. } => false,
        }
    }

    /// The error in one line, with a remedy.
    #[must_use]
    pub fn with_remedy(&self) -> String {
        match self {
            Self::Read { .. } | Self::Image { .. } => format!("{self} ({REMEDY})"),
            Self::Unusable { .. } | Self::Store { .. } | Self::Format { .. } => self.to_string(),
        }
    }
}

/// A name that is not that of a split.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown split `{0}`: expected one of `train`, `val` (or `validation`, `dev`), `test`")]
pub struct UnknownSplit(pub(crate) String);
