//! From a data set to batches: the order of samples, and a loader that works ahead.

mod loader;
pub mod permutation;

pub use loader::{Batch, Loader, Pending, Sample, Sizes, Source, Views, kind, normalise};
