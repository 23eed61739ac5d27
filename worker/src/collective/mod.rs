//! Collective operations among the ranks of a generation, behind the trait [`Collective`]: NCCL
//! between GPUs, Gloo between CPUs, and no communication in a generation of one rank.
//!
//! | file | content |
//! |---|---|
//! | `nccl` | [`NcclCollective`], between GPUs |
//! | `gloo` | [`GlooCollective`], between CPUs, with libtorch's process group |
//! | `single_rank` | [`SingleRankCollective`], for a generation of one rank |
//! | `tcp_store` | [`TcpStore`], in which ranks exchange addresses before they connect to each other |

mod gloo;
mod nccl;
mod single_rank;
mod tcp_store;

use std::net::IpAddr;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::anyhow;
use tch::{Device, Tensor};
use worker_protocol::StopFlag;

pub use gloo::GlooCollective;
pub use nccl::NcclCollective;
pub use single_rank::SingleRankCollective;
pub use tcp_store::TcpStore;

use crate::errors;

/// Interval at which waits check the abandon flag. NCCL's waits have their own interval.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Collective operations. All ranks of a generation call them in the same order.
pub trait Collective {
    /// This rank, in 0..`world_size`.
    fn rank(&self) -> usize;
    /// The number of ranks.
    fn world_size(&self) -> usize;
    /// Sums `tensor` over all ranks, in place.
    ///
    /// # Errors
    /// A peer or the network has failed, the backend cannot use a tensor of this type, layout or
    /// device, or the generation was abandoned. The collective cannot be used afterwards.
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

/// Why a collective cannot be formed, or can no longer be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// The generation was abandoned: by the coordinator, or by this worker itself.
    #[error("the generation was abandoned")]
    Abandoned,
    /// An operation failed, for example because a peer or the network failed.
    #[error("collective failed: {0}")]
    Failed(String),
}

impl From<anyhow::Error> for CollectiveError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(errors::one_line(&error))
    }
}

/// The parameters of a generation's rendezvous, in which its ranks connect to each other.
pub struct RendezvousParameters<'a> {
    /// The address (host:port) of rank 0's [`TcpStore`].
    pub tcp_store_address: &'a str,
    /// The number of the generation.
    pub generation: u64,
    /// The term of the generation: together with the number it identifies the generation.
    pub term: u64,
    /// This rank, in 0..`world_size`.
    pub rank: usize,
    /// The number of ranks.
    pub world_size: usize,
    /// How long to wait for the other ranks.
    pub timeout: Duration,
    /// Ends the rendezvous, and later operations of the collective, when raised.
    pub abandon: StopFlag,
}

impl RendezvousParameters<'_> {
    /// Connects to the other ranks with the backend for this device. All members of a run have the
    /// same type of device. Other ranks connect to this one at `host`.
    ///
    /// # Errors
    /// The store cannot be reached, the other ranks did not join in time, the backend does not work
    /// on this machine, or the generation was abandoned.
    pub fn connect(&self, device: Device, host: IpAddr) -> Result<Box<dyn Collective>, CollectiveError> {
        Ok(match device {
            _ if self.world_size == 1 => Box::new(SingleRankCollective),
            Device::Cuda(gpu) => Box::new(NcclCollective::connect(self, gpu)?),
            _ => Box::new(GlooCollective::connect(self, host)?),
        })
    }

    /// The key prefix of the generation in the store, different for each generation.
    fn key_prefix(&self) -> String {
        format!("generation-{}-{:016x}", self.generation, self.term)
    }

    /// Runs `work`, which uses the generation's store, on a separate thread, because calls to the
    /// store block and cannot be interrupted.
    ///
    /// # Errors
    /// The store cannot be reached, `work` failed, or the generation was abandoned. In the last
    /// case the call returns at once, and the thread ends at its own timeout.
    fn with_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&tcp_store::TcpStoreClient) -> anyhow::Result<T> + Send + 'static,
    ) -> Result<T, CollectiveError> {
        let (address, prefix, timeout) = (self.tcp_store_address.to_owned(), self.key_prefix(), self.timeout);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let result = tcp_store::TcpStoreClient::connect(&address, &prefix, timeout).and_then(|store| work(&store));
            // Fails if the generation was abandoned; the result is dropped here then.
            _ = sender.send(result);
        });
        loop {
            match receiver.recv_timeout(POLL_INTERVAL) {
                Ok(result) => return Ok(result?),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(anyhow!("the rendezvous thread panicked").into());
                }
                Err(mpsc::RecvTimeoutError::Timeout) if self.abandon.is_raised() => {
                    return Err(CollectiveError::Abandoned);
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }
}
