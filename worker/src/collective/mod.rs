//! How the ranks of a generation combine tensors. One trait; Gloo where there is no GPU, nothing at all for a world of one,
//! and room for NCCL.

mod gloo;
mod solo;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Tensor;

pub use gloo::{Gloo, Store};
pub use solo::Solo;

/// Operations that every rank of a generation calls in the same order.
pub trait Collective {
    /// This rank, in 0..`world_size`.
    fn rank(&self) -> usize;
    /// Number of ranks.
    fn world_size(&self) -> usize;
    /// Sums `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// A peer is gone, or the generation was abandoned; the collective is of no further use then.
    fn all_reduce(&self, tensor: &Tensor) -> Result<(), Broken>;
    /// Overwrites `tensor` with that of rank `root`.
    ///
    /// # Errors
    /// As for `all_reduce`.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), Broken>;
    /// Every rank's tensor, in order of rank; all must have one shape.
    ///
    /// # Errors
    /// As for `all_reduce`.
    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, Broken>;
}

/// Why a collective cannot be used any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// The coordinator said so.
    #[error("the generation was abandoned")]
    Abandoned,
    /// A peer or the network failed.
    #[error("collective failed: {0}")]
    Failed(String),
}

/// Tells another thread something once: to end a wait inside a collective, or to stop after what is in flight.
#[derive(Clone, Debug, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Tells it.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was told.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
