use crate::{MAX_DECODED_BYTES, MAX_PIXELS};

/// An error of reading or decoding an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// The file is HTML or XML, for instance a web server's error page.
    #[error("a web page or XML, not an image")]
    Markup,
    /// The file has no signature of a supported format.
    #[error("not a JPEG, PNG or WebP")]
    UnknownFormat,
    /// The file ends too early.
    #[error("truncated")]
    Truncated,
    /// Width or height is 0.
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
    /// The image is damaged, with the decoder's message.
    #[error("{0}")]
    Damaged(String),
    /// The file cannot be read.
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
