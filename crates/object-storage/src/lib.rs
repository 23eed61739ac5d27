//! Access to folders and S3 buckets through the crate `object_store`, for synchronous code.
//!
//! `checkpoint-store` and `dataset` use it.

mod access;
mod blocking;
mod error;
mod location;

pub use access::Access;
pub use blocking::BlockingRuntime;
pub use error::{LocationError, describe_error};
pub use location::Location;
