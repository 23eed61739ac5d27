use std::fmt::Display;

/// An error in the data, in one line that names the file or URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("{location}: {source}")]
    Read {
        /// The path of the file or folder.
        location: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A tar could not be read from its folder or bucket.
    #[error("{location}: {problem}")]
    Store {
        /// The path or URL of the tar.
        location: String,
        /// The error of the store.
        problem: String,
    },
    /// Annotations, patterns of tar names, tars or their index files have a wrong format or do not
    /// have what the run needs, or a limit of [`limits`](crate::limits) is exceeded.
    #[error("{location}: {problem}")]
    Invalid {
        /// The path, URL, pattern, or part of the data.
        location: String,
        /// The problem, and its position if known.
        problem: String,
    },
    /// Images of the annotations are missing or invalid, and `data.skip_corrupt` is unset; names
    /// the first one.
    #[error("{location}: {problem}{} ({REMEDY})", others(*more))]
    Unusable {
        /// The image file, or the key and its tar.
        location: String,
        /// The problem with the image.
        problem: String,
        /// The number of further missing or invalid images.
        more: usize,
    },
    /// An image cannot be decoded.
    #[error("{location}: {problem}")]
    Image {
        /// The image file, or the key and its tar.
        location: String,
        /// The problem with the image.
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
    pub(crate) fn invalid(location: impl Display, problem: impl Display) -> Self {
        Self::Invalid { location: location.to_string(), problem: problem.to_string() }
    }

    pub(crate) fn image(location: impl Display, problem: impl Display) -> Self {
        Self::Image { location: location.to_string(), problem: problem.to_string() }
    }

    /// Whether an error in reading or decoding an image concerns only this image, so that the
    /// others can be used. An unreachable bucket, for instance, concerns all images of its tars.
    #[must_use]
    pub fn is_image_error(&self) -> bool {
        match self {
            Self::Read { .. } | Self::Image { .. } | Self::Unusable { .. } => true,
            Self::Store { .. } | Self::Invalid { .. } => false,
        }
    }

    /// The error in one line, with a remedy.
    #[must_use]
    pub fn with_remedy(&self) -> String {
        match self {
            Self::Read { .. } | Self::Image { .. } => format!("{self} ({REMEDY})"),
            Self::Unusable { .. } | Self::Store { .. } | Self::Invalid { .. } => self.to_string(),
        }
    }
}

/// A name that no split has.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown split `{0}`: expected one of `train`, `val` (or `validation`, `dev`), `test`")]
pub struct UnknownSplitError(pub(crate) String);
