//! How the ranks of a generation combine tensors. One trait; NCCL between GPUs, Gloo where there is none, and nothing at all for a
//! world of one.

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

/// How long a wait that cannot be interrupted goes on before the flag is looked at.
const POLL: Duration = Duration::from_millis(10);

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

/// What a rank needs to know to meet the others of its generation.
pub struct Meeting<'a> {
    /// host:port of the store of rank 0.
    pub store_address: &'a str,
    /// Number of the generation.
    pub generation: u64,
    /// Its term: with the number it identifies the generation.
    pub term: u64,
    /// This rank, in 0..`world_size`.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// How long to wait for the others.
    pub patience: Duration,
    /// Ends the meeting, and what comes of it, when raised.
    pub abandon: Flag,
}

impl Meeting<'_> {
    /// Meets in the way that suits the device, which is of one kind for all members of a run; others reach this one at `host`.
    ///
    /// # Errors
    /// The others did not come in time, or the generation was abandoned.
    pub fn hold(&self, device: Device, host: IpAddr) -> Result<Box<dyn Collective>, Broken> {
        Ok(match device {
            _ if self.world_size == 1 => Box::new(Solo),
            Device::Cuda(gpu) => Box::new(Nccl::meet(self, gpu)?),
            _ => Box::new(Gloo::meet(self, host)?),
        })
    }

    /// Names the generation, unlike any other's.
    fn name(&self) -> String {
        format!("generation-{}-{:016x}", self.generation, self.term)
    }

    /// Does something with the generation's store that may block and cannot be interrupted, on a thread that is left behind when
    /// the generation is over.
    fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&store::Client) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Broken> {
        let (address, name, patience) = (self.store_address.to_owned(), self.name(), self.patience);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let done = store::Client::connect(&address, &name, patience).and_then(|store| work(&store));
            // Nobody listens any more once the generation is abandoned; what was made is then dropped here.
            _ = sender.send(done);
        });
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(done) => return done.map_err(Broken::Failed),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Broken::Failed("meeting thread died".into())),
                Err(mpsc::RecvTimeoutError::Timeout) if self.abandon.is_raised() => return Err(Broken::Abandoned),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
