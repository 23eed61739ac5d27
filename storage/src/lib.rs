//! Checkpoints in folders and S3 buckets, and how buckets are reached: all that the project asks of the crate `object_store`.
//!
//! A checkpoint is a prefix with files in it and a *seal*, `checkpoint.json`, which is written last and lists every file with
//! its size and SHA-256. Without a seal there is no checkpoint; with one, what is read is what was written, or it is damaged.
//! So nothing has to be renamed, and a bucket, which cannot rename, is as good as a folder.
//!
//! Everything here blocks; call it from plain threads, never from asynchronous code.

mod access;
mod blocking;
mod checkpoints;
mod error;
mod files;
mod folder;
mod location;
mod names;
mod seal;
mod stamp;

pub use access::Access;
pub use blocking::Blocking;
pub use checkpoints::{Checkpoints, Fetched, Listing, check_writable};
pub use error::{Error, describe};
pub use files::Files;
pub use folder::{seal, verify};
pub use names::check as check_name;
pub use stamp::{JournalHead, STAMP, STAMP_FORMAT, Sequence, Stamp};
