//! Access to folders and S3 buckets through the crate `object_store`, for synchronous code.
//!
//! Used by `checkpoint-store` and `dataset`.

mod access;
mod blocking;
mod error;
mod location;

pub use access::Access;
pub use blocking::Blocking;
pub use error::{LocationError, describe};
pub use location::Location;
