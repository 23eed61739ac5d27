//! Batches from a data set: the order of samples ([`permutation`]), and the data loader that
//! prefetches batches (`data_loader`).

mod data_loader;
pub mod permutation;

pub use data_loader::{
    Batch, BatchImages, BatchSource, DataLoader, ImageSizes, LOADING_THREADS, PendingBatch, Sample, normalize,
    tensor_kind,
};
