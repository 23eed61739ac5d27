use crate::{MAX_DECODED_BYTES, MAX_PIXELS};

/// Why an image cannot be read, decoded or preprocessed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The first byte that is not white space is `<`, as in HTML and XML: for instance a web
    /// server's error page.
    #[error("a web page or XML, not an image")]
    Markup,
    /// The file does not begin with the signature of a supported format.
    #[error("not a JPEG, PNG or WebP")]
    UnsupportedFormat,
    /// The file ends too early, or cannot be read to its end: libjpeg does not distinguish the two.
    #[error("truncated")]
    Truncated,
    /// Width or height of the image is 0, or the requested size is.
    #[error("image without pixels")]
    NoPixels,
    /// The image has more pixels than Pillow would decode.
    #[error("{width} x {height} pixels: more than {MAX_PIXELS}")]
    TooManyPixels {
        /// The width in pixels.
        width: u32,
        /// The height in pixels.
        height: u32,
    },
    /// The decoded image would take too much memory.
    #[error("{bytes} bytes when decoded: more than {MAX_DECODED_BYTES}")]
    TooLarge {
        /// The size of the decoded image in bytes.
        bytes: u64,
    },
    /// The decoder cannot decode the image, for the reason in its message: the image is damaged, or
    /// uses a rare variant of its format.
    #[error("{0}")]
    Damaged(String),
    /// The file cannot be read, with the operating system's message.
    #[error("{0}")]
    Read(String),
}

impl Error {
    pub(crate) fn damaged(problem: impl ToString) -> Self {
        Self::Damaged(problem.to_string())
    }

    pub(crate) fn read(problem: impl ToString) -> Self {
        Self::Read(problem.to_string())
    }
}
