//! Batches from a data set: the order of samples, and the prefetching loader.

mod loader;
pub mod permutation;

pub use loader::{Batch, BatchImages, BatchSource, ImageSizes, Loader, PendingBatch, Sample, normalize, tensor_kind};
