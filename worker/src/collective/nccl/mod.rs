//! NCCL: collective operations between GPUs. Communicators are non-blocking, so that each wait can
//! check the abandon flag.
//!
//! CUDA events order the work of two streams:
//!
//! ```text
//!   libtorch's stream   backward pass --.                         .--> optimizer step
//!                                       | event: gradients ready  | event: sums ready
//!   this rank's stream                  '--> ncclAllReduce -------'
//! ```

mod api;
mod communicator;

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{anyhow, bail};
use cudarc::driver::{CudaContext, CudaStream, DriverError};
use cudarc::nccl::sys::{cudaStream_t, ncclDataType_t, ncclUniqueId};
use tch::{Device, Kind, Tensor};
use worker_protocol::StopFlag;

use super::{Collective, CollectiveError, RendezvousParameters};
use api::{NcclApi, ResultCode, SUCCESS, SUM};
use communicator::{Communicator, wait_until};

/// The key of the communicator's unique id in the store.
const UNIQUE_ID_KEY: &str = "nccl";

/// The communicator of one generation, with a CUDA stream of its own.
pub struct NcclCollective {
    /// Always present until the drop, which shuts the communicator down on another thread.
    connection: Option<Connection>,
    /// The tensors of the present operation. They are kept because a failed communicator may write
    /// to them until it is shut down.
    active_tensors: RefCell<Vec<Tensor>>,
    /// Whether the ranks have connected, and every operation that was started has completed. An
    /// abandoned or failed operation never completes.
    operations_completed: Cell<bool>,
    abandon: StopFlag,
    rank: usize,
    world_size: usize,
}

/// A communicator, with the CUDA context and the stream of its operations.
struct Connection {
    communicator: Communicator,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl NcclCollective {
    /// Connects to the other ranks of a generation. This rank computes on GPU `gpu`.
    ///
    /// # Errors
    /// The other ranks did not join in time, the generation was abandoned, or NCCL does not work
    /// here.
    pub fn connect(parameters: &RendezvousParameters<'_>, gpu: usize) -> Result<Self, CollectiveError> {
        let deadline = Instant::now() + parameters.timeout;
        let (rank, world_size, abandon) = (parameters.rank, parameters.world_size, parameters.abandon.clone());
        let api = NcclApi::get()?;
        let id = exchange_unique_id(api, parameters)?;
        let context = CudaContext::new(gpu).map_err(cuda_error)?;
        let stream = context.new_stream().map_err(cuda_error)?;
        // The CUDA context is current on this thread now.
        let communicator = Communicator::start(api, id, rank, world_size)?;
        let nccl = Self {
            connection: Some(Connection { communicator, context, stream }),
            active_tensors: RefCell::default(),
            operations_completed: Cell::new(false),
            abandon,
            rank,
            world_size,
        };
        wait_until(&nccl.abandon, || {
            let is_late = Instant::now() >= deadline;
            match nccl.connection().communicator.is_ready() {
                Ok(false) if is_late => bail!("the other ranks did not join in time"),
                ready => ready,
            }
        })?;
        nccl.operations_completed.set(true);
        Ok(nccl)
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("only the drop takes the connection")
    }

    /// Starts an operation on the stream, after the work that libtorch has queued, and waits until
    /// it has completed on the GPU.
    fn run(
        &self,
        tensors: &[&Tensor],
        start: impl FnOnce(&Communicator, cudaStream_t) -> ResultCode,
    ) -> Result<(), CollectiveError> {
        let Connection { communicator, context, stream } = self.connection();
        if self.abandon.is_raised() {
            return Err(CollectiveError::Abandoned);
        }
        self.operations_completed.set(false);
        _ = self.active_tensors.replace(tensors.iter().map(|tensor| tensor.shallow_clone()).collect());
        // libtorch computes on the default stream.
        stream.join(&context.default_stream()).map_err(cuda_error)?;
        communicator.check(start(communicator, stream.cu_stream().cast()))?;
        wait_until(&self.abandon, || communicator.is_ready())?;
        let completion = stream.record_event(None).map_err(cuda_error)?;
        wait_until(&self.abandon, || {
            communicator.is_ready()?;
            completion.try_is_complete().map_err(|error| anyhow!("CUDA: {error}"))
        })?;
        self.active_tensors.borrow_mut().clear();
        self.operations_completed.set(true);
        Ok(())
    }
}

impl Drop for NcclCollective {
    fn drop(&mut self) {
        let (active_tensors, operations_completed) = (self.active_tensors.take(), self.operations_completed.get());
        let Some(Connection { communicator, context, stream }) = self.connection.take() else { return };
        std::thread::spawn(move || {
            // If the context cannot be bound, it no longer exists, and the communicator with it.
            _ = context.bind_to_thread();
            communicator.shut_down(operations_completed);
            // The communicator may write to the tensors until here.
            _ = stream.synchronize();
            drop(active_tensors);
        });
    }
}

impl Collective for NcclCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<(), CollectiveError> {
        let (data, count, kind) = raw_parts(tensor)?;
        self.run(&[tensor], |Communicator { api, pointer }, stream| {
            // SAFETY: pointer and count describe the tensor, which lives while the communicator may
            // use it.
            unsafe { (api.all_reduce)(data, data, count, kind, SUM, *pointer, stream) }
        })
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), CollectiveError> {
        let (data, count, kind) = raw_parts(tensor)?;
        self.run(&[tensor], |Communicator { api, pointer }, stream| {
            // SAFETY: as above.
            unsafe { (api.broadcast)(data, data, count, kind, root as _, *pointer, stream) }
        })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
        let tensor = tensor.contiguous();
        let shape: Vec<i64> = std::iter::once(self.world_size as i64).chain(tensor.size()).collect();
        let gathered = Tensor::empty(shape, (tensor.kind(), tensor.device()));
        let ((input, count, kind), (output, ..)) = (raw_parts(&tensor)?, raw_parts(&gathered)?);
        self.run(&[&tensor, &gathered], |Communicator { api, pointer }, stream| {
            // SAFETY: as above; the output has room for the tensors of all ranks.
            unsafe { (api.all_gather)(input, output, count, kind, *pointer, stream) }
        })?;
        Ok(gathered.unbind(0))
    }
}

/// The communicator's unique id. Rank 0 creates it and writes it to the store; the other ranks read
/// it from there.
///
/// # Errors
/// The store cannot be reached within the timeout, rank 0 did not write the id in time, NCCL cannot
/// create one, or the generation was abandoned.
fn exchange_unique_id(
    api: &'static NcclApi,
    parameters: &RendezvousParameters<'_>,
) -> Result<ncclUniqueId, CollectiveError> {
    let creates_id = parameters.rank == 0;
    parameters.with_store(move |store| {
        let mut id = ncclUniqueId { internal: [0; 128] };
        if creates_id {
            // SAFETY: the id has the type that NCCL writes.
            let code = unsafe { (api.get_unique_id)(&raw mut id) };
            if code != SUCCESS {
                bail!(api.error_message(code, std::ptr::null_mut()));
            }
            store.set(UNIQUE_ID_KEY, &id.internal.map(|byte| byte as u8))?;
        } else {
            let mut bytes = [0; 128];
            store.get(UNIQUE_ID_KEY, &mut bytes)?;
            id.internal = bytes.map(|byte| byte as _);
        }
        Ok(id)
    })
}

/// The pointer, number of elements and type of a contiguous tensor on a GPU.
///
/// # Errors
/// The tensor is on another device, is not contiguous, or has a type that NCCL does not have.
fn raw_parts(tensor: &Tensor) -> Result<(*mut c_void, usize, ncclDataType_t), CollectiveError> {
    let unsupported = |property: String| Err(CollectiveError::Failed(format!("NCCL cannot use a tensor {property}")));
    let kind = match tensor.kind() {
        Kind::Uint8 => ncclDataType_t::ncclUint8,
        Kind::Int => ncclDataType_t::ncclInt32,
        Kind::Int64 => ncclDataType_t::ncclInt64,
        Kind::Half => ncclDataType_t::ncclFloat16,
        Kind::BFloat16 => ncclDataType_t::ncclBfloat16,
        Kind::Float => ncclDataType_t::ncclFloat32,
        Kind::Double => ncclDataType_t::ncclFloat64,
        other => return unsupported(format!("of type {other:?}")),
    };
    match tensor.device() {
        Device::Cuda(_) if tensor.is_contiguous() => Ok((tensor.data_ptr(), tensor.numel(), kind)),
        Device::Cuda(_) => unsupported("that is not contiguous".to_owned()),
        other => unsupported(format!("on {other:?}")),
    }
}

fn cuda_error(error: DriverError) -> CollectiveError {
    CollectiveError::Failed(format!("CUDA: {error}"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::*;
    use crate::collective::TcpStore;

    #[test]
    fn all_ranks_get_the_unique_id_of_rank_0() {
        let api = communicator::tests::fake_api();
        let store = TcpStore::serve(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let tcp_store_address = store.address();
        let unique_id = |rank| {
            let (timeout, abandon) = (Duration::from_secs(30), StopFlag::default());
            let parameters = RendezvousParameters {
                tcp_store_address,
                generation: 7,
                term: 0,
                rank,
                world_size: 2,
                timeout,
                abandon,
            };
            exchange_unique_id(api, &parameters).unwrap()
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| unique_id(1));
            assert_eq!((unique_id(0).internal, second.join().unwrap().internal), ([42; 128], [42; 128]));
        });
    }

    #[test]
    fn only_tensors_on_gpus_are_accepted() {
        let on_cpu = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        assert_eq!(raw_parts(&on_cpu).unwrap_err().to_string(), "collective failed: NCCL cannot use a tensor on Cpu");
        let complex = Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu));
        assert!(raw_parts(&complex).unwrap_err().to_string().ends_with("of type ComplexFloat"));
    }
}
