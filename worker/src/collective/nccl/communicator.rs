use std::ffi::c_int;
use std::time::{Duration, Instant};

use cudarc::nccl::sys::{ncclComm_t, ncclConfig_t, ncclUniqueId};

use super::api::{Api, Code, IN_PROGRESS, SUCCESS};
use crate::collective::{CollectiveError, Flag};

/// Waits spin for this long: an all-reduce between GPUs seldom takes longer.
const SPIN: Duration = Duration::from_millis(2);
/// After that waits poll at this interval.
const POLL: Duration = Duration::from_micros(200);
/// Time limit for finalizing a communicator, which sends what peers still wait for.
const FAREWELL: Duration = Duration::from_secs(10);

/// A non-blocking NCCL communicator: its calls return before they have completed.
pub struct Communicator {
    pub api: &'static Api,
    pub pointer: ncclComm_t,
}

// SAFETY: a communicator is tied to no thread, and is used by one at a time.
unsafe impl Send for Communicator {}

impl Communicator {
    /// Begins the rendezvous with the other ranks. Usable once [`Self::is_ready`] returns true.
    pub fn start(api: &'static Api, id: ncclUniqueId, rank: usize, world_size: usize) -> Result<Self, String> {
        let (rank, world_size) = (rank as c_int, world_size as c_int);
        let mut pointer = std::ptr::null_mut();
        let mut config = config();
        // SAFETY: all pointers outlive the call.
        let code = unsafe { (api.comm_init_rank_config)(&raw mut pointer, world_size, id, rank, &raw mut config) };
        if pointer.is_null() {
            return Err(api.explain(code, pointer));
        }
        Ok(Self { api, pointer })
    }

    /// Fails if a call that returned `code` was not accepted.
    pub fn accepted(&self, code: Code) -> Result<(), String> {
        if matches!(code, SUCCESS | IN_PROGRESS) { Ok(()) } else { Err(self.api.explain(code, self.pointer)) }
    }

    /// Whether the last call has completed on the host. Fails if the communicator has.
    pub fn is_ready(&self) -> Result<bool, String> {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives as long as this.
        let code = unsafe { (self.api.comm_get_async_error)(self.pointer, &raw mut state) };
        self.accepted(code)?;
        self.accepted(state)?;
        Ok(state == SUCCESS)
    }

    /// Finalizes and destroys the communicator if it `is_sound`; aborts it otherwise, or when
    /// finalizing takes longer than [`FAREWELL`].
    pub fn end(self, is_sound: bool) {
        let Self { api, pointer } = self;
        // SAFETY: as for `is_ready`; nothing else uses the communicator any more.
        let finalized = is_sound && self.accepted(unsafe { (api.comm_finalize)(pointer) }).is_ok();
        let until = Instant::now() + FAREWELL;
        let is_over = finalized
            && poll(&Flag::default(), || match self.is_ready() {
                Ok(false) if Instant::now() >= until => Err(String::new()),
                ready => ready,
            })
            .is_ok();
        // SAFETY: as above. The result is ignored: there is no remedy for an error.
        _ = unsafe { if is_over { (api.comm_destroy)(pointer) } else { (api.comm_abort)(pointer) } };
    }
}

/// Polls until `is_done` returns true. Fails if it fails, or if the generation is abandoned.
pub fn poll(abandon: &Flag, is_done: impl Fn() -> Result<bool, String>) -> Result<(), CollectiveError> {
    let started = Instant::now();
    while !is_done().map_err(CollectiveError::Failed)? {
        if abandon.is_raised() {
            return Err(CollectiveError::Abandoned);
        }
        if started.elapsed() < SPIN { std::hint::spin_loop() } else { std::thread::sleep(POLL) }
    }
    Ok(())
}

/// `NCCL_CONFIG_INITIALIZER` of NCCL 2.28's nccl.h, but non-blocking.
fn config() -> ncclConfig_t {
    const UNDEFINED: c_int = c_int::MIN;
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: 0xcafe_beef,
        version: 22_800,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::{c_char, c_void};
    use std::sync::atomic::{AtomicU32, Ordering};

    use cudarc::nccl::sys::{cudaStream_t, ncclDataType_t};

    use super::*;

    /// A communicator of the fake library: the state that it reports, and how it was ended.
    #[derive(Default)]
    struct Fake {
        state: AtomicU32,
        ended: AtomicU32,
    }

    const DESTROYED: u32 = 1;
    const ABORTED: u32 = 2;
    const REMOTE_ERROR: Code = 6;

    fn of<'a>(pointer: ncclComm_t) -> &'a Fake {
        // SAFETY: in these tests a communicator is made of a fake that lives longer.
        unsafe { &*pointer.cast::<Fake>() }
    }

    /// A library without effects. Its communicators have to be [`Fake`]s.
    pub fn fake() -> &'static Api {
        unsafe extern "C" fn get_unique_id(id: *mut ncclUniqueId) -> Code {
            // SAFETY: the caller has room for it.
            unsafe { (*id).internal = [42; 128] };
            SUCCESS
        }
        unsafe extern "C" fn init(
            _: *mut ncclComm_t,
            _: c_int,
            _: ncclUniqueId,
            _: c_int,
            config: *mut ncclConfig_t,
        ) -> Code {
            // SAFETY: the caller has a configuration.
            assert_eq!(unsafe { ((*config).blocking, (*config).size) }, (0, size_of::<ncclConfig_t>()));
            REMOTE_ERROR
        }
        unsafe extern "C" fn state(comm: ncclComm_t, state: *mut Code) -> Code {
            // SAFETY: the caller has room for it.
            unsafe { *state = of(comm).state.load(Ordering::Relaxed) };
            SUCCESS
        }
        unsafe extern "C" fn finalize(_: ncclComm_t) -> Code {
            IN_PROGRESS
        }
        unsafe extern "C" fn destroy(comm: ncclComm_t) -> Code {
            of(comm).ended.store(DESTROYED, Ordering::Relaxed);
            SUCCESS
        }
        unsafe extern "C" fn abort(comm: ncclComm_t) -> Code {
            of(comm).ended.store(ABORTED, Ordering::Relaxed);
            SUCCESS
        }
        unsafe extern "C" fn reduce(
            _: *const c_void,
            _: *mut c_void,
            _: usize,
            _: ncclDataType_t,
            _: c_int,
            _: ncclComm_t,
            _: cudaStream_t,
        ) -> Code {
            SUCCESS
        }
        unsafe extern "C" fn gather(
            _: *const c_void,
            _: *mut c_void,
            _: usize,
            _: ncclDataType_t,
            _: ncclComm_t,
            _: cudaStream_t,
        ) -> Code {
            SUCCESS
        }
        unsafe extern "C" fn meaning(_: Code) -> *const c_char {
            c"remote process exited".as_ptr()
        }
        unsafe extern "C" fn last(_: ncclComm_t) -> *const c_char {
            c"connection closed by 10.0.0.2\n".as_ptr()
        }
        static API: Api = Api {
            get_unique_id,
            comm_init_rank_config: init,
            comm_get_async_error: state,
            comm_finalize: finalize,
            comm_destroy: destroy,
            comm_abort: abort,
            all_reduce: reduce,
            broadcast: reduce,
            all_gather: gather,
            get_error_string: meaning,
            get_last_error: last,
        };
        &API
    }

    fn communicator(of: &Fake) -> Communicator {
        Communicator { api: fake(), pointer: std::ptr::from_ref(of).cast_mut().cast() }
    }

    #[test]
    fn a_wait_ends_when_it_is_done_when_a_peer_is_gone_and_when_it_is_abandoned() {
        let (own, flag) = (Fake::default(), Flag::default());
        let communicator = communicator(&own);
        let wait = || poll(&flag, || communicator.is_ready());
        assert_eq!(wait(), Ok(()));
        own.state.store(REMOTE_ERROR, Ordering::Relaxed);
        let text = "NCCL: remote process exited: connection closed by 10.0.0.2";
        assert_eq!(wait(), Err(CollectiveError::Failed(text.to_owned())));
        own.state.store(IN_PROGRESS, Ordering::Relaxed);
        std::thread::scope(|scope| {
            scope.spawn(|| own.state.store(SUCCESS, Ordering::Relaxed));
            assert_eq!(wait(), Ok(()));
        });
        own.state.store(IN_PROGRESS, Ordering::Relaxed);
        flag.raise();
        assert_eq!(wait(), Err(CollectiveError::Abandoned));
    }

    #[test]
    fn a_sound_communicator_is_destroyed_and_a_broken_one_aborted() {
        let ended = |is_sound, state: Code| {
            let own = Fake { state: state.into(), ..Fake::default() };
            communicator(&own).end(is_sound);
            own.ended.into_inner()
        };
        assert_eq!(ended(true, SUCCESS), DESTROYED);
        assert_eq!(ended(true, REMOTE_ERROR), ABORTED);
        assert_eq!(ended(false, SUCCESS), ABORTED);
    }

    #[test]
    fn why_there_is_no_communicator_is_said() {
        let refused = Communicator::start(fake(), ncclUniqueId { internal: [0; 128] }, 0, 1).err();
        assert_eq!(refused.as_deref(), Some("NCCL: remote process exited: connection closed by 10.0.0.2"));
    }
}
