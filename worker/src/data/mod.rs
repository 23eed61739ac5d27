//! From a data set to batches: the order of samples, and the prefetching loader.

mod loader;
pub mod permutation;

pub use loader::{Batch, BatchImages, Loader, Pending, Sample, Sizes, Source, kind, normalise};
