//! NCCL: collective operations between GPUs. Communicators are non-blocking, so that each wait can
//! check the abandon flag.
//!
//! ```text
//!   libtorch's stream   ... gradients ---event--.                       .--- host goes on --> optimizer ...
//!   our stream                                  '--> ncclAllReduce --event
//! ```

mod api;
mod communicator;

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaContext, CudaStream, DriverError};
use cudarc::nccl::sys::{cudaStream_t, ncclDataType_t, ncclUniqueId};
use tch::{Device, Kind, Tensor};

use super::{Collective, CollectiveError, Flag, RendezvousPlan};
use api::{Api, Code, SUCCESS, SUM};
use communicator::{Communicator, poll};

/// The key of the communicator's unique id in the store.
const UNIQUE_ID: &str = "nccl";

/// The communicator of one generation, with a CUDA stream of its own.
pub struct Nccl {
    /// Taken when dropped, to be ended on another thread.
    link: Option<Link>,
    /// The tensors of the present operation. A broken communicator may write to them until it has
    /// ended.
    under_way: RefCell<Vec<Tensor>>,
    /// Whether all operations that were started have completed.
    is_sound: Cell<bool>,
    abandon: Flag,
    rank: usize,
    world_size: usize,
}

struct Link {
    communicator: Communicator,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

impl Nccl {
    /// Joins the rendezvous of a generation's ranks, all of which compute on GPUs; this one on GPU
    /// `gpu`.
    ///
    /// # Errors
    /// The other ranks did not join in time, the generation was abandoned, or NCCL does not work
    /// here.
    pub fn meet(meeting: &RendezvousPlan<'_>, gpu: usize) -> Result<Self, CollectiveError> {
        let deadline = Instant::now() + meeting.patience;
        let (rank, world_size, abandon) = (meeting.rank, meeting.world_size, meeting.abandon.clone());
        let api = Api::get().map_err(CollectiveError::Failed)?;
        let id = unique_id(api, meeting)?;
        let context = CudaContext::new(gpu).map_err(driver)?;
        let stream = context.new_stream().map_err(driver)?;
        // The CUDA context is current on this thread now.
        let communicator = Communicator::start(api, id, rank, world_size).map_err(CollectiveError::Failed)?;
        let link = Link { communicator, context, stream };
        let (link, is_sound) = (Some(link), Cell::new(false));
        let nccl = Self { link, under_way: RefCell::default(), is_sound, abandon, rank, world_size };
        poll(&nccl.abandon, || {
            let late = Instant::now() >= deadline;
            match nccl.link().communicator.is_ready() {
                Ok(false) if late => Err("the others did not come in time".to_owned()),
                ready => ready,
            }
        })?;
        nccl.is_sound.set(true);
        Ok(nccl)
    }

    fn link(&self) -> &Link {
        self.link.as_ref().expect("the communicator is only taken by drop")
    }

    /// Starts an operation on the stream, after all work that libtorch has queued, and waits until
    /// it has completed.
    fn run(
        &self,
        tensors: &[&Tensor],
        start: impl FnOnce(&Communicator, cudaStream_t) -> Code,
    ) -> Result<(), CollectiveError> {
        let Link { communicator, context, stream } = self.link();
        if self.abandon.is_raised() {
            return Err(CollectiveError::Abandoned);
        }
        self.is_sound.set(false);
        *self.under_way.borrow_mut() = tensors.iter().map(|tensor| tensor.shallow_clone()).collect();
        // libtorch computes on the default stream.
        stream.join(&context.default_stream()).map_err(driver)?;
        communicator.accepted(start(communicator, stream.cu_stream().cast())).map_err(CollectiveError::Failed)?;
        poll(&self.abandon, || communicator.is_ready())?;
        let done = stream.record_event(None).map_err(driver)?;
        poll(&self.abandon, || {
            communicator.is_ready()?;
            done.try_is_complete().map_err(|error| format!("CUDA: {error}"))
        })?;
        self.under_way.borrow_mut().clear();
        self.is_sound.set(true);
        Ok(())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        let (under_way, is_sound) = (self.under_way.take(), self.is_sound.get());
        let Some(Link { communicator, context, stream }) = self.link.take() else { return };
        std::thread::spawn(move || {
            // Without its context the communicator cannot be ended, and does not have to be.
            _ = context.bind_to_thread();
            communicator.end(is_sound);
            // Until here it may have written to the tensors.
            _ = stream.synchronize();
            drop(under_way);
        });
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<(), CollectiveError> {
        let (data, count, kind) = memory(tensor)?;
        self.run(&[tensor], |Communicator { api, pointer }, stream| {
            // SAFETY: the memory is that of the tensor, which is kept while the communicator may use it.
            unsafe { (api.all_reduce)(data, data, count, kind, SUM, *pointer, stream) }
        })
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), CollectiveError> {
        let (data, count, kind) = memory(tensor)?;
        self.run(&[tensor], |Communicator { api, pointer }, stream| {
            // SAFETY: as above.
            unsafe { (api.broadcast)(data, data, count, kind, root as _, *pointer, stream) }
        })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
        let tensor = tensor.contiguous();
        let shape: Vec<i64> = std::iter::once(self.world_size as i64).chain(tensor.size()).collect();
        let gathered = Tensor::empty(shape, (tensor.kind(), tensor.device()));
        let ((own, count, kind), (all, ..)) = (memory(&tensor)?, memory(&gathered)?);
        self.run(&[&tensor, &gathered], |Communicator { api, pointer }, stream| {
            // SAFETY: as above; there is room for as many as there are ranks.
            unsafe { (api.all_gather)(own, all, count, kind, *pointer, stream) }
        })?;
        Ok(gathered.unbind(0))
    }
}

/// The communicator's unique id: rank 0 creates it and puts it in the store, the others read it
/// there.
fn unique_id(api: &'static Api, meeting: &RendezvousPlan<'_>) -> Result<ncclUniqueId, CollectiveError> {
    let is_first = meeting.rank == 0;
    meeting.apart(move |store| {
        let mut id = ncclUniqueId { internal: [0; 128] };
        if is_first {
            // SAFETY: there is room for what is written.
            let code = unsafe { (api.get_unique_id)(&raw mut id) };
            if code != SUCCESS {
                return Err(api.explain(code, std::ptr::null_mut()));
            }
            store.set(UNIQUE_ID, &id.internal.map(|byte| byte as u8))?;
        } else {
            let mut bytes = [0; 128];
            store.get(UNIQUE_ID, &mut bytes)?;
            id.internal = bytes.map(|byte| byte as _);
        }
        Ok(id)
    })
}

/// The address, length and type of a contiguous tensor's values.
fn memory(tensor: &Tensor) -> Result<(*mut c_void, usize, ncclDataType_t), CollectiveError> {
    let unfit = |what: String| Err(CollectiveError::Failed(format!("NCCL cannot take a tensor {what}")));
    let kind = match tensor.kind() {
        Kind::Uint8 => ncclDataType_t::ncclUint8,
        Kind::Int => ncclDataType_t::ncclInt32,
        Kind::Int64 => ncclDataType_t::ncclInt64,
        Kind::Half => ncclDataType_t::ncclFloat16,
        Kind::BFloat16 => ncclDataType_t::ncclBfloat16,
        Kind::Float => ncclDataType_t::ncclFloat32,
        Kind::Double => ncclDataType_t::ncclFloat64,
        other => return unfit(format!("of {other:?}")),
    };
    match tensor.device() {
        Device::Cuda(_) if tensor.is_contiguous() => Ok((tensor.data_ptr(), tensor.numel(), kind)),
        Device::Cuda(_) => unfit("with gaps".to_owned()),
        other => unfit(format!("on {other:?}")),
    }
}

fn driver(error: DriverError) -> CollectiveError {
    CollectiveError::Failed(format!("CUDA: {error}"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use super::*;
    use crate::collective::Store;

    #[test]
    fn the_ranks_agree_on_the_name_that_the_first_gives() {
        let api = communicator::tests::fake();
        let store = Store::serve(IpAddr::V4(Ipv4Addr::LOCALHOST)).unwrap();
        let store_address = store.address();
        let named = |rank| {
            let (patience, abandon) = (Duration::from_secs(30), Flag::default());
            let meeting =
                RendezvousPlan { store_address, generation: 7, term: 0, rank, world_size: 2, patience, abandon };
            unique_id(api, &meeting).unwrap()
        };
        std::thread::scope(|scope| {
            let second = scope.spawn(|| named(1));
            assert_eq!((named(0).internal, second.join().unwrap().internal), ([42; 128], [42; 128]));
        });
    }

    #[test]
    fn only_memory_of_gpus_is_taken() {
        let on_cpu = Tensor::zeros([2], (Kind::Float, Device::Cpu));
        assert_eq!(memory(&on_cpu).unwrap_err().to_string(), "collective failed: NCCL cannot take a tensor on Cpu");
        let complex = Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu));
        assert!(memory(&complex).unwrap_err().to_string().ends_with("of ComplexFloat"));
    }
}
