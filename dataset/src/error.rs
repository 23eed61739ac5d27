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
    /// Images of the annotations are missing or are none, and may not be left out; the first of
    /// them.
    #[error("{place}: {problem}{} ({REMEDY})", others(*more))]
    Unusable {
        /// The image file, or the tar and the key in it.
        place: String,
        /// What is wrong with it.
        problem: String,
        /// How many more such images there are.
        more: usize,
    },
    /// An image cannot be decoded.
    #[error("{place}: {problem}")]
    Image {
        /// The image file, or the tar and the key in it.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What to do about an image that cannot be used.
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

    /// Whether a single image is to blame, so that the others are of use without it. Where a bucket
    /// cannot be reached, say, none is.
    #[must_use]
    pub fn is_of_image(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Image { .. } | Self::Unusable { .. } => true,
            Self::Store { .. } | Self::Format { .. } => false,
        }
    }

    /// The error in one line, with what to do about it.
    #[must_use]
    pub fn with_remedy(&self) -> String {
        match self {
            Self::Read { .. } | Self::Image { .. } => format!("{self} ({REMEDY})"),
            Self::Unusable { .. } | Self::Store { .. } | Self::Format { .. } => self.to_string(),
        }
    }
}

/// A name that is no split's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown split `{0}`: expected one of `train`, `val` (or `validation`, `dev`), `test`")]
pub struct UnknownSplit(pub(crate) String);
