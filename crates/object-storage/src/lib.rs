//! Access to folders and S3 buckets through the crate `object_store`, for synchronous code: the
//! crates `checkpoint-store` and `dataset`. A *store* is a folder or bucket as an `ObjectStore`.

mod access;
mod blocking;
mod error;
mod location;

pub use access::Access;
pub use blocking::BlockingRuntime;
pub use error::{LocationError, describe_error};
pub use location::Location;
