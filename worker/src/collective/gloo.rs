use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::{IpAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::mpsc;
use std::time::Duration;

use tch::Tensor;

use super::{Broken, Collective, Flag};

/// Bytes of an error's buffer; as in `gloo/shim.cpp`.
const ERROR_LENGTH: usize = 512;
/// How long a wait goes on before it looks at the abandon flag; completion itself is noticed at once.
const POLL: Duration = Duration::from_millis(10);

// SAFETY: declarations of the functions in gloo/shim.cpp, with the same types.
unsafe extern "C" {
    fn dico_store_serve(fd: c_int, host: *const c_char, port: u16, error: *mut c_char) -> *mut c_void;
    fn dico_store_free(store: *mut c_void);
    fn dico_gloo_new(
        store_host: *const c_char,
        store_port: u16,
        prefix: *const c_char,
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

/// A pointer that the shim hands out; its objects may be used from one thread at a time, whichever that is.
struct Handle {
    pointer: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
}

// SAFETY: c10d's objects are reference-counted atomically and tied to no thread.
unsafe impl Send for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the shim together with the function that frees it, and is freed once.
        unsafe { (self.free)(self.pointer) }
    }
}

impl Handle {
    fn new(
        free: unsafe extern "C" fn(*mut c_void),
        make: impl FnOnce(*mut c_char) -> *mut c_void,
    ) -> Result<Self, String> {
        let mut error = [0 as c_char; ERROR_LENGTH];
        let pointer = make(error.as_mut_ptr());
        if pointer.is_null() { Err(text(&error)) } else { Ok(Self { pointer, free }) }
    }
}

fn text(error: &[c_char; ERROR_LENGTH]) -> String {
    // SAFETY: the shim always ends what it writes with a zero, and the buffer starts as zeros.
    unsafe { CStr::from_ptr(error.as_ptr()) }.to_string_lossy().into_owned()
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("{text:?} has a zero byte in it"))
}

/// The key-value store that this worker serves for as long as it lives; the ranks of a generation meet in rank 0's.
pub struct Store {
    _handle: Handle,
    address: String,
}

impl Store {
    /// Listens on a port of the system's choosing at `host`.
    ///
    /// # Errors
    /// `host` is not an address of this machine.
    pub fn serve(host: IpAddr) -> Result<Self, String> {
        let listener = TcpListener::bind((host, 0)).map_err(|error| format!("cannot listen on {host}: {error}"))?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let name = c_string(&host.to_string())?;
        let fd = listener.into_raw_fd();
        // SAFETY: `name` outlives the call; the store takes the socket over.
        let handle = Handle::new(dico_store_free, |error| unsafe {
            dico_store_serve(fd, name.as_ptr(), address.port(), error)
        })?;
        Ok(Self { _handle: handle, address: address.to_string() })
    }

    /// host:port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }
}

/// Gloo over TCP, through libtorch's process group.
pub struct Gloo {
    /// Taken when dropped, to be destroyed on another thread: an abandoned group waits for its peers' sockets.
    group: Option<Handle>,
    abandon: Flag,
    rank: usize,
    world_size: usize,
}

impl Gloo {
    /// Meets the other ranks of `generation` at the store of its rank 0.
    ///
    /// # Errors
    /// The others did not come within `patience`, or `abandon` was raised.
    pub fn meet(
        store_address: &str,
        generation: u64,
        own_host: IpAddr,
        rank: usize,
        world_size: usize,
        patience: Duration,
        abandon: Flag,
    ) -> Result<Self, Broken> {
        let (host, port) = store_address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.trim_matches(['[', ']']).to_owned(), port.parse::<u16>().ok()?)))
            .ok_or_else(|| Broken::Failed(format!("store address {store_address:?} is not host:port")))?;
        // A prefix of its own for each generation: a fast rank must not read a peer's address of an earlier one.
        let prefix = format!("generation-{generation}");
        let (sender, receiver) = mpsc::channel();
        // Meeting blocks without a way to interrupt it, so it happens on a thread that can be left behind.
        std::thread::spawn(move || {
            let connect = || {
                let (host, prefix) = (c_string(&host)?, c_string(&prefix)?);
                let own_host = c_string(&own_host.to_string())?;
                let timeout = patience.as_millis() as i64;
                let (rank, size) = (rank as c_int, world_size as c_int);
                // SAFETY: all strings outlive the call.
                Handle::new(dico_gloo_free, |error| unsafe {
                    let (host, prefix, own) = (host.as_ptr(), prefix.as_ptr(), own_host.as_ptr());
                    dico_gloo_new(host, port, prefix, own, rank, size, timeout, error)
                })
            };
            // Nobody listens any more once the generation is abandoned; the group is then destroyed here.
            _ = sender.send(connect());
        });
        loop {
            match receiver.recv_timeout(POLL) {
                Ok(Ok(group)) => return Ok(Self { group: Some(group), abandon, rank, world_size }),
                Ok(Err(reason)) => return Err(Broken::Failed(reason)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(Broken::Failed("meeting thread died".into())),
                Err(mpsc::RecvTimeoutError::Timeout) if abandon.is_raised() => return Err(Broken::Abandoned),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn group(&self) -> *mut c_void {
        self.group.as_ref().expect("the group is only taken by drop").pointer
    }

    fn run(&self, start: impl FnOnce(*mut c_char) -> *mut c_void) -> Result<(), Broken> {
        if self.abandon.is_raised() {
            return Err(Broken::Abandoned);
        }
        let work = Handle::new(dico_work_free, start).map_err(Broken::Failed)?;
        let mut error = [0 as c_char; ERROR_LENGTH];
        loop {
            // SAFETY: the work lives until the end of this function; the buffer has the length that the shim expects.
            match unsafe { dico_work_wait(work.pointer, POLL.as_millis() as i64, error.as_mut_ptr()) } {
                1 => return Ok(()),
                0 if self.abandon.is_raised() => return Err(Broken::Abandoned),
                0 => {}
                _ => return Err(Broken::Failed(text(&error))),
            }
        }
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        let group = self.group.take();
        std::thread::spawn(move || drop(group));
    }
}

impl Collective for Gloo {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor) -> Result<(), Broken> {
        // SAFETY: tch's tensors are at::Tensor; the shim keeps the tensor alive while the work runs.
        self.run(|error| unsafe { dico_gloo_all_reduce(self.group(), tensor.as_ptr().cast(), error) })
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<(), Broken> {
        // SAFETY: as above.
        self.run(|error| unsafe { dico_gloo_broadcast(self.group(), tensor.as_ptr().cast(), root as c_int, error) })
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Vec<Tensor>, Broken> {
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

    use tch::{Device, Kind};

    use super::*;

    const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn world<T: Send>(size: usize, body: impl Fn(Gloo) -> T + Sync) -> Vec<T> {
        let store = Store::serve(HOST).unwrap();
        let (address, body) = (store.address(), &body);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..size)
                .map(|rank| {
                    scope.spawn(move || {
                        let patience = Duration::from_secs(30);
                        let flag = Flag::default();
                        body(Gloo::meet(address, 1, HOST, rank, size, patience, flag).unwrap())
                    })
                })
                .collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_sum_broadcast_and_gather() {
        let results = world(3, |gloo| {
            let own = Tensor::full([4], gloo.rank() as f64 + 1.0, (Kind::Float, Device::Cpu));
            let sum = own.copy();
            gloo.all_reduce(&sum).unwrap();
            let copied = own.copy();
            gloo.broadcast(&copied, 2).unwrap();
            let gathered = Tensor::cat(&gloo.all_gather(&own).unwrap(), 0);
            [sum, copied, gathered].map(|tensor| Vec::<f32>::try_from(tensor).unwrap())
        });
        for [sum, copied, gathered] in results {
            assert_eq!((sum, copied), (vec![6.0; 4], vec![3.0; 4]));
            assert_eq!(gathered, [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0, 3.0]);
        }
    }

    #[test]
    fn a_peer_that_leaves_is_noticed_and_an_abandoned_wait_ends() {
        let errors = world(2, |gloo| match gloo.rank() {
            0 => None,
            _ => {
                // Rank 0 never takes part: either its closed connection or the flag ends the wait.
                let flag = gloo.abandon.clone();
                std::thread::spawn(move || flag.raise());
                gloo.all_reduce(&Tensor::zeros([8], (Kind::Float, Device::Cpu))).err()
            }
        });
        assert!(errors[1].is_some());
    }

    #[test]
    fn meeting_ends_when_abandoned() {
        let store = Store::serve(HOST).unwrap();
        let flag = Flag::default();
        flag.raise();
        let met = Gloo::meet(store.address(), 1, HOST, 0, 2, Duration::from_secs(2), flag);
        assert_eq!(met.err(), Some(Broken::Abandoned));
    }
}
