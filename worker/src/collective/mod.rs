//! Collective operations among the ranks of a generation, behind the trait [`Collective`]: NCCL
//! between GPUs, Gloo between CPUs, and no communication for a single rank.

mod gloo;
mod nccl;
mod solo;
mod store;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use tch::{Device, Tensor};

pub use gloo::Gloo;
pub use nccl::Nccl;
pub use solo::Solo;
pub use store::Store;

/// Interval at which waits check the abandon flag.
const POLL: Duration = Duration::from_millis(10);

/// Collective operations. All ranks of a generation have to call them in the same order.
pub trait Collective {
    /// This rank, in 0..`world_size`.
    fn rank(&self) -> usize;
    /// The number of ranks.
    fn world_size(&self) -> usize;
    /// Sums `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// A peer has failed, or the generation was abandoned. The collective cannot be used
    /// afterwards.
    fn all_reduce(&self, tensor: &Tensor) -> Result<(), CollectiveError>;
    /// Overwrites `tensor` with the tensor of rank `root`.
    ///
    /// # Errors
    /// As for `all_reduce`.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), CollectiveError>;
    /// The tensors of all ranks, in order of rank. All must have the same shape.
    ///
    /// # Errors
    /// As for `all_reduce`.
    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, CollectiveError>;
}

/// Why a collective can no longer be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// The generation was abandoned: by the coordinator, or by this worker itself.
    #[error("the generation was abandoned")]
    Abandoned,
    /// A peer or the network failed.
    #[error("collective failed: {0}")]
    Failed(String),
}

/// A one-way signal to another thread: to end a wait inside a collective, or to stop after the step
/// in flight. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Flag(Arc<AtomicBool>);

impl Flag {
    /// Sets the signal. It stays set.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the signal is set.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The parameters of a generation's rendezvous.
pub struct RendezvousPlan<'a> {
    /// The address (host:port) of rank 0's store.
    pub store_address: &'a str,
    /// The number of the generation.
    pub generation: u64,
    /// The term of the generation: together with the number it identifies the generation.
    pub term: u64,
    /// This rank, in 0..`world_size`.
    pub rank: usize,
    /// The number of ranks.
    pub world_size: usize,
    /// The timeout for the other ranks.
    pub patience: Duration,
    /// Ends the rendezvous, and later operations of the collective, when raised.
    pub abandon: Flag,
}

impl RendezvousPlan<'_> {
    /// Joins the rendezvous, with the backend for this device; all members of a run have the same
    /// type of device. Other ranks connect to this one at `host`.
    ///
    /// # Errors
    /// The other ranks did not join in time, or the generation was abandoned.
    pub fn hold(&self, device: Device, host: IpAddr) -> Result<Box<dyn Collective>, CollectiveError> {
        Ok(match device {
            _ if self.world_size == 1 => Box::new(Solo),
            Device::Cuda(gpu) => Box::new(Nccl::meet(self, gpu)?),
            _ => Box::new(Gloo::meet(self, host)?),
        })
    }

    /// The key prefix of the generation in the store, different for each generation.
    fn name(&self) -> String {
        format!("generation-{}-{:016x}", self.generation, self.term)
    }

    /// Runs `work` on the generation's store, which may block without a way to interrupt it, on a
    /// separate thread. If the generation is abandoned, that thread is left to itself.
    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&store::Client) -> Result<T, String> + Send + 'static,
    ) -> Result<T, CollectiveError> {
        let (address, name, patience) = (self.store_address.to_owned(), self.name(), self.patience);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let done = store::Client::connect(&address, &name, patience).and_then(|store| work(&store));
            // Fails if the generation was abandoned; the result is dropped here then.
            _ = sender.send(done);
        });
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(done) => return done.map_err(CollectiveError::Failed),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(CollectiveError::Failed("meeting thread died".into()));
                }
                Err(mpsc::RecvTimeoutError::Timeout) if self.abandon.is_raised() => {
                    return Err(CollectiveError::Abandoned);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
