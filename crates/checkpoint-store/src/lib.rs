//! Checkpoints in folders and S3 buckets.
//!
//! A checkpoint is a prefix with files and a *seal*, `checkpoint.json`, which is written last and
//! lists every file with its size and SHA-256. Without a seal there is no checkpoint; with one, its
//! files match it, or the checkpoint is damaged. So nothing has to be renamed, which a bucket
//! cannot do.
//!
//! All functions block: call them from synchronous threads, never from asynchronous code.

mod checkpoints;
mod error;
mod files;
mod folder;
mod names;
mod seal;
mod stamp;

pub use checkpoints::{Checkpoints, Fetched, Listing, check_writable};
pub use error::Error;
pub use files::Files;
pub use folder::{seal, verify};
pub use names::check as check_name;
pub use stamp::{JournalHead, STAMP, STAMP_FORMAT, Sequence, Stamp};
