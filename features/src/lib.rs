//! The feature store: what the frozen towers see of each image of a split, computed once and read from memory-mapped files.
//!
//! A store is a folder:
//!
//! | file | what is in it |
//! |---|---|
//! | `manifest.json` | what the rows are: split, images, weights, preprocessing, shape and type; written first |
//! | `features.bin` | a row for each image, in the split's order: hidden states `[tokens, width]`, then the unit embeddings of the evaluators, `[embedding]` together |
//! | `checksums.bin` | the CRC-32 of each row, little-endian; written after the row is safe, so it says how far a store goes |
//!
//! Every row is checked when it is read. A [`Writer`] goes on where an earlier one stopped; a store that was made of other
//! weights, images or settings is refused by both [`Writer`] and [`Store`], naming what differs.

mod manifest;
mod store;
mod writer;

pub use manifest::{Dtype, Manifest, Rows, Tower};
pub use store::Store;
pub use writer::Writer;

use std::path::PathBuf;

/// What is wrong with a store, naming it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("feature store {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The manifest is none.
    #[error("feature store {}: {problem}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// The store was made of something else than what is needed.
    #[error("feature store {} was made with another {what}: {found}, not {wanted}; encode into another folder", path.display())]
    Differs {
        /// The store.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the store has.
        found: String,
        /// What is needed.
        wanted: String,
    },
    /// Rows are missing.
    #[error("feature store {} has {rows} of {images} images: run `worker encode` again to complete it", path.display())]
    Incomplete {
        /// The store.
        path: PathBuf,
        /// Rows there are.
        rows: u64,
        /// Rows there should be.
        images: u64,
    },
    /// A row is not what was written.
    #[error("feature store {} is damaged at image {row}: remove it and encode again", path.display())]
    Damaged {
        /// The store.
        path: PathBuf,
        /// The row, from 0.
        row: u64,
    },
    /// Another process writes to the store.
    #[error("feature store {} is being written by another process", path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },
}

const MANIFEST: &str = "manifest.json";
const FEATURES: &str = "features.bin";
const CHECKSUMS: &str = "checksums.bin";
/// Bytes of a checksum.
const CHECKSUM: usize = 4;
