//! Checkpoints in folders and S3 buckets.
//!
//! A checkpoint is a folder, or a prefix in a bucket, with files and a *seal*, `checkpoint.json`,
//! which is written last and lists every other file with its size and SHA-256. A folder or prefix
//! without a seal is not a checkpoint; a checkpoint whose files do not match its seal is damaged.
//! No file is renamed, because S3 cannot rename objects.
//!
//! All functions that read or write block: never call them from asynchronous code.
//!
//! | module | content |
//! |---|---|
//! | `checkpoints` | writes, reads, lists and deletes the checkpoints of a run |
//! | `writer` | writes the files of one checkpoint |
//! | `seal` | the seal: the list of a checkpoint's files with their hashes |
//! | `folder` | seals and verifies local model folders |
//! | `metadata` | which run, position and parameters a checkpoint has |
//! | `names` | the names that checkpoints and files may have |

mod checkpoints;
mod error;
mod folder;
mod metadata;
mod names;
mod seal;
mod writer;

pub use checkpoints::{Checkpoints, Listing, VerifiedCheckpoint, check_writable};
pub use error::Error;
pub use folder::{seal_folder, verify_folder};
pub use metadata::{CheckpointMetadata, JournalHead, METADATA_FILE, METADATA_FORMAT, SampleSequence};
pub use names::check as check_name;
pub use writer::CheckpointWriter;
