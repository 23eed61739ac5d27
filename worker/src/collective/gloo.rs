//! Gloo: collective operations between CPUs over TCP, with libtorch's process group.

use std::ffi::{c_char, c_int, c_void};
use std::net::IpAddr;

use tch::Tensor;
use worker_protocol::StopFlag;

use super::tcp_store::{ERROR_LENGTH, ShimHandle, c_string, error_message};
use super::{Collective, CollectiveError, POLL_INTERVAL, RendezvousParameters};

// SAFETY: declarations of the functions in gloo/shim.cpp, with the same types.
unsafe extern "C" {
    fn dico_gloo_new(
        store: *mut c_void,
        own_host: *const c_char,
        rank: c_int,
        size: c_int,
        timeout_ms: i64,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_gloo_free(group: *mut c_void);
    fn dico_gloo_all_reduce(group: *mut c_void, tensor: *const c_void, error: *mut c_char) -> *mut c_void;
    fn dico_gloo_broadcast(group: *mut c_void, tensor: *const c_void, root: c_int, error: *mut c_char) -> *mut c_void;
    fn dico_gloo_all_gather(
        group: *mut c_void,
        tensor: *const c_void,
        outputs: *const *const c_void,
        count: c_int,
        error: *mut c_char,
    ) -> *mut c_void;
    fn dico_work_wait(work: *mut c_void, timeout_ms: i64, error: *mut c_char) -> c_int;
    fn dico_work_free(work: *mut c_void);
}

/// A Gloo process group of one generation.
pub struct GlooCollective {
    /// Always present until the drop, which destroys the group on another thread: destroying an
    /// abandoned group waits for the sockets of its peers.
    group: Option<ShimHandle>,
    abandon: StopFlag,
    rank: usize,
    world_size: usize,
}

impl GlooCollective {
    /// Connects to the other ranks of a generation, which connect to this one at `own_host`.
    ///
    /// # Errors
    /// The store cannot be reached, the other ranks did not join in time, Gloo does not work here,
    /// or the generation was abandoned.
    pub fn connect(parameters: &RendezvousParameters<'_>, own_host: IpAddr) -> Result<Self, CollectiveError> {
        let (rank, world_size) = (parameters.rank, parameters.world_size);
        let timeout_ms = parameters.timeout.as_millis() as i64;
        let group = parameters.with_store(move |store| {
            let own_host = c_string(&own_host.to_string())?;
            let (rank, size) = (rank as c_int, world_size as c_int);
            // SAFETY: store and string outlive the call.
            ShimHandle::new(dico_gloo_free, |error| unsafe {
                dico_gloo_new(store.pointer(), own_host.as_ptr(), rank, size, timeout_ms, error)
            })
        })?;
        Ok(Self { group: Some(group), abandon: parameters.abandon.clone(), rank, world_size })
    }

    fn group(&self) -> *mut c_void {
        self.group.as_ref().expect("only the drop takes the group").pointer
    }

    /// Starts an operation, and waits until it has completed.
    fn run(&self, start: impl FnOnce(*mut c_char) -> *mut c_void) -> Result<(), CollectiveError> {
        if self.abandon.is_raised() {
            return Err(CollectiveError::Abandoned);
        }
        let work = ShimHandle::new(dico_work_free, start)?;
        let mut error = [0 as c_char; ERROR_LENGTH];
        loop {
            // 1: completed; 0: not yet completed; -1: failed.
            // SAFETY: the work lives until the end of this function; the buffer has the length that
            // the shim expects.
            match unsafe { dico_work_wait(work.pointer, POLL_INTERVAL.as_millis() as i64, error.as_mut_ptr()) } {
                1 => return Ok(()),
                0 if self.abandon.is_raised() => return Err(CollectiveError::Abandoned),
                0 => {}
                _ => return Err(CollectiveError::Failed(error_message(&error))),
            }
        }
    }
}

impl Drop for GlooCollective {
    fn drop(&mut self) {
        let group = self.group.take();
        std::thread::spawn(move || drop(group));
    }
}

impl Collective for GlooCollective {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<(), CollectiveError> {
        // SAFETY: tch's tensors are at::Tensor; the shim keeps the tensor alive while the work
        // runs.
        self.run(|error| unsafe { dico_gloo_all_reduce(self.group(), tensor.as_ptr().cast(), error) })
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), CollectiveError> {
        // SAFETY: as above.
        self.run(|error| unsafe { dico_gloo_broadcast(self.group(), tensor.as_ptr().cast(), root as c_int, error) })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, CollectiveError> {
        let tensor = tensor.contiguous();
        let gathered: Vec<Tensor> = (0..self.world_size).map(|_| tensor.zeros_like()).collect();
        let pointers: Vec<*const c_void> = gathered.iter().map(|output| output.as_ptr().cast()).collect();
        // SAFETY: as above; the shim copies the pointers' tensors before it returns.
        self.run(|error| unsafe {
            let count = pointers.len() as c_int;
            dico_gloo_all_gather(self.group(), tensor.as_ptr().cast(), pointers.as_ptr(), count, error)
        })?;
        Ok(gathered)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tch::{Device, Kind};

    use super::*;
    use crate::collective::TcpStore;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// Runs `body` on this number of ranks, each a thread. Returns the results in order of rank.
    fn run_ranks<T: Send>(world_size: usize, body: impl Fn(GlooCollective) -> T + Sync) -> Vec<T> {
        let store = TcpStore::serve(HOST).unwrap();
        let (address, body) = (store.address(), &body);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..world_size)
                .map(|rank| {
                    scope.spawn(move || {
                        let parameters = RendezvousParameters {
                            tcp_store_address: address,
                            generation: 1,
                            term: 0,
                            rank,
                            world_size,
                            timeout: Duration::from_secs(30),
                            abandon: StopFlag::default(),
                        };
                        body(GlooCollective::connect(&parameters, HOST).unwrap())
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_sum_broadcast_and_gather() {
        let results = run_ranks(3, |gloo| {
            let input = Tensor::full([4], gloo.rank() as f64 + 1.0, (Kind::Float, Device::Cpu));
            let sum = input.copy();
            gloo.all_reduce(&sum).unwrap();
            let broadcast = input.copy();
            gloo.broadcast(&broadcast, 2).unwrap();
            let gathered = Tensor::cat(&gloo.all_gather(&input).unwrap(), 0);
            [sum, broadcast, gathered].map(|tensor| Vec::<f32>::try_from(tensor).unwrap())
        });
        for [sum, broadcast, gathered] in results {
            assert_eq!((sum, broadcast), (vec![6.0; 4], vec![3.0; 4]));
            assert_eq!(gathered, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0]);
        }
    }

    #[test]
    fn a_wait_ends_when_a_peer_has_gone_or_the_generation_is_abandoned() {
        let errors = run_ranks(2, |gloo| match gloo.rank() {
            0 => None,
            _ => {
                // Rank 0 does not call all_reduce: either its closed connection or the flag ends
                // the wait.
                let flag = gloo.abandon.clone();
                std::thread::spawn(move || flag.raise());
                gloo.all_reduce(&Tensor::zeros([8], (Kind::Float, Device::Cpu))).err()
            }
        });
        assert!(errors[1].is_some());
    }

    #[test]
    fn a_rendezvous_ends_when_the_generation_is_abandoned() {
        let store = TcpStore::serve(HOST).unwrap();
        let flag = StopFlag::default();
        flag.raise();
        let parameters = RendezvousParameters {
            tcp_store_address: store.address(),
            generation: 1,
            term: 0,
            rank: 0,
            world_size: 2,
            timeout: Duration::from_secs(2),
            abandon: flag,
        };
        assert_eq!(GlooCollective::connect(&parameters, HOST).err(), Some(CollectiveError::Abandoned));
    }
}
